//! Documents that list the sites by hand are complete.
#![allow(clippy::unwrap_used)]

use std::path::Path;

use fathom_model::Site;

/// Text from the repository.
fn read(path: &str) -> String {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    std::fs::read_to_string(root.join(path)).unwrap()
}

/// The first column of a Markdown table of sites: names in backticks, without the layer.
fn names_in_tables(text: &str) -> Vec<String> {
    let first_columns = text.lines().filter_map(|line| line.strip_prefix("| ")?.split('|').next());
    let names = first_columns.flat_map(|column| column.split('`').skip(1).step_by(2));
    names.map(|name| name.split('.').next().unwrap().to_owned()).collect()
}

#[test]
fn the_table_for_users_of_other_tools_lists_every_site() {
    let text = read("python/docs/coming-from.md");
    let listed = names_in_tables(&text);
    for site in Site::all() {
        assert!(listed.iter().any(|name| name == site.name()), "{site}");
        let lens = site.lens_name_at(3).unwrap_or_default();
        let hook = lens.rsplit('.').next().unwrap();
        assert!(text.contains(hook), "{site}: {lens}");
    }
}
