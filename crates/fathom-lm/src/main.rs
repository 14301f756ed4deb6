//! The `fathom` command line; see [`fathom_lm::cli`].

fn main() -> std::process::ExitCode {
    fathom_lm::cli::main(std::env::args_os())
}
