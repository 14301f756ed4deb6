//! All filters, tests, functions and methods that a template can call: those of Python's Jinja2 and
//! those that HuggingFace adds. A template cannot call anything else.

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, UndefinedBehavior, Value, filters, tests};
use minijinja_contrib::pycompat;

use super::budget::{Budget, ELEMENT, Stop};
use super::instrument::{CHARGE, CONCAT, CYCLE, ITERATE, MULTIPLY, ORDER};
use super::python::{JsonStyle, json, str_of};

/// Maximum length of a range, as in Jinja2's sandbox (`MAX_RANGE`).
const MAX_RANGE: i128 = 100_000;

/// The Jinja environment of one rendering, which charges `budget`.
pub(super) fn environment(budget: &Budget, date: jiff::civil::Date) -> Environment<'static> {
    let mut env = Environment::empty();
    env.set_undefined_behavior(UndefinedBehavior::Lenient);
    add_jinja(&mut env);
    add_bounded(&mut env, budget);
    add_hugging_face(&mut env, budget, date);
    let formatter = budget.clone();
    env.set_formatter(move |out, _, value| {
        out.write_str(&str_of(value, &formatter)?).map_err(Error::from)
    });
    let methods = budget.clone();
    env.set_unknown_method_callback(move |state, value, name, args| {
        method(&methods, state, value, name, args)
    });
    env
}

/// Adds Jinja's filters and tests whose result is never much larger than their input.
fn add_jinja(env: &mut Environment) {
    env.add_filter("abs", filters::abs);
    env.add_filter("attr", filters::attr);
    env.add_filter("capitalize", filters::capitalize);
    env.add_filter("count", filters::length);
    env.add_filter("d", filters::default);
    env.add_filter("default", filters::default);
    env.add_filter("dictsort", filters::dictsort);
    env.add_filter("e", filters::escape);
    env.add_filter("escape", filters::escape);
    env.add_filter("first", filters::first);
    env.add_filter("float", filters::float);
    env.add_filter("groupby", filters::groupby);
    env.add_filter("int", filters::int);
    env.add_filter("items", filters::items);
    env.add_filter("last", filters::last);
    env.add_filter("length", filters::length);
    env.add_filter("lower", filters::lower);
    env.add_filter("map", filters::map);
    env.add_filter("max", filters::max);
    env.add_filter("min", filters::min);
    env.add_filter("reject", filters::reject);
    env.add_filter("rejectattr", filters::rejectattr);
    env.add_filter("reverse", filters::reverse);
    env.add_filter("round", filters::round);
    env.add_filter("safe", |value: Value| value);
    env.add_filter("select", filters::select);
    env.add_filter("selectattr", filters::selectattr);
    env.add_filter("sort", filters::sort);
    env.add_filter("title", filters::title);
    env.add_filter("trim", filters::trim);
    env.add_filter("unique", filters::unique);
    env.add_filter("upper", filters::upper);

    env.add_test("boolean", tests::is_boolean);
    env.add_test("defined", tests::is_defined);
    env.add_test("divisibleby", |value: &Value, by: &Value| {
        // `tests::is_divisibleby` itself panics on zero.
        let zero = f64::try_from(by.clone()).is_ok_and(|by| by == 0.0);
        if zero { Err(invalid("division by zero")) } else { Ok(tests::is_divisibleby(value, by)) }
    });
    env.add_test("endingwith", tests::is_endingwith);
    for name in ["eq", "equalto", "=="] {
        env.add_test(name, tests::is_eq);
    }
    env.add_test("even", tests::is_even);
    env.add_test("false", tests::is_false);
    env.add_test("float", tests::is_float);
    for name in ["ge", ">="] {
        env.add_test(name, tests::is_ge);
    }
    for name in ["gt", "greaterthan", ">"] {
        env.add_test(name, tests::is_gt);
    }
    env.add_test("in", tests::is_in);
    env.add_test("integer", tests::is_integer);
    env.add_test("iterable", is_iterable);
    for name in ["le", "<="] {
        env.add_test(name, tests::is_le);
    }
    env.add_test("lower", tests::is_lower);
    for name in ["lt", "lessthan", "<"] {
        env.add_test(name, tests::is_lt);
    }
    env.add_test("mapping", tests::is_mapping);
    for name in ["ne", "!="] {
        env.add_test(name, tests::is_ne);
    }
    env.add_test("none", tests::is_none);
    env.add_test("number", tests::is_number);
    env.add_test("odd", tests::is_odd);
    env.add_test("sameas", tests::is_sameas);
    env.add_test("sequence", |value: &Value| {
        matches!(value.kind(), ValueKind::Seq | ValueKind::String | ValueKind::Map)
    });
    env.add_test("startingwith", tests::is_startingwith);
    env.add_test("string", tests::is_string);
    env.add_test("true", tests::is_true);
    env.add_test("undefined", tests::is_undefined);
    env.add_test("upper", tests::is_upper);

    env.add_function("dict", minijinja::functions::dict);
    env.add_function("namespace", minijinja::functions::namespace);
}

/// Adds the filters and functions whose result can be much larger than their input. These
/// implementations charge the budget before they build the result.
fn add_bounded(env: &mut Environment, budget: &Budget) {
    let b = budget.clone();
    env.add_filter(CHARGE, move |value: Value| b.charge(&value).map(|()| value));
    env.add_filter(ITERATE, |value: Value| match is_iterable(&value) {
        true => Ok(value),
        false => Err(invalid(&format!("a value of type {} cannot be iterated over", value.kind()))),
    });
    env.add_filter(ORDER, |value: Value| match value.kind() {
        ValueKind::None | ValueKind::Undefined => {
            Err(invalid(&format!("a value of type {} has no order", value.kind())))
        }
        _ => Ok(value),
    });
    let b = budget.clone();
    env.add_function(CONCAT, move |left: &Value, right: &Value| {
        Ok::<_, Error>(str_of(left, &b)? + &str_of(right, &b)?)
    });
    let b = budget.clone();
    env.add_function(MULTIPLY, move |left: &Value, right: &Value| multiply(left, right, &b));
    env.add_function(CYCLE, |loop_: &Value, items: Rest<Value>| {
        let index = usize::try_from(loop_.get_attr("index0")?)?;
        let item = index.checked_rem(items.len()).and_then(|index| items.get(index).cloned());
        item.ok_or_else(|| invalid("cycle needs at least one argument"))
    });
    env.add_function("range", |args: Rest<i64>| range(&args));
    let b = budget.clone();
    env.add_filter("string", move |value: &Value| str_of(value, &b));
    let b = budget.clone();
    env.add_filter("list", move |state: &State, value: Value| {
        charge_split(&value, &b)?;
        filters::list(state, value)
    });
    let b = budget.clone();
    env.add_filter("join", move |value: &Value, separator: Option<&Value>, kwargs: Kwargs| {
        let attribute: Option<String> = kwargs.get("attribute")?;
        let given: Option<Value> = kwargs.get("d")?;
        kwargs.assert_all_used()?;
        let separator =
            separator.or(given.as_ref()).map_or(Ok(String::new()), |s| str_of(s, &b))?;
        join(value, &separator, attribute.as_deref(), &b)
    });
    let b = budget.clone();
    env.add_filter("replace", move |value: &Value, old: &str, new: &str, count: Option<i64>| {
        replace(&str_of(value, &b)?, old, new, count, &b)
    });
    let b = budget.clone();
    env.add_filter("indent", move |value: &Value, width: Option<Value>, args: Rest<Value>| {
        let (first, blank, kwargs): (Option<bool>, Option<bool>, Kwargs) = from_args(&args)?;
        let width = width.map_or_else(|| kwargs.get("width"), |width| Ok(Some(width)))?;
        let first = first.map_or_else(|| kwargs.get("first"), |first| Ok(Some(first)))?;
        let blank = blank.map_or_else(|| kwargs.get("blank"), |blank| Ok(Some(blank)))?;
        kwargs.assert_all_used()?;
        let width = width.map_or(Ok("    ".to_owned()), |width| spaces(&width, &b))?;
        let text = str_of(value, &b)?;
        indent(&text, &width, first.unwrap_or(false), blank.unwrap_or(false), &b)
    });
}

/// Adds what HuggingFace adds to Jinja's environment.
fn add_hugging_face(env: &mut Environment, budget: &Budget, date: jiff::civil::Date) {
    let b = budget.clone();
    env.add_filter("tojson", move |value: &Value, ensure_ascii: Option<Value>, kwargs: Kwargs| {
        let ensure_ascii =
            ensure_ascii.map_or_else(|| kwargs.get("ensure_ascii"), |a| Ok(Some(a)))?;
        let indent: Option<Value> = kwargs.get("indent")?;
        let separators: Option<Vec<String>> = kwargs.get("separators")?;
        let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
        kwargs.assert_all_used()?;
        let indent = indent.filter(|indent| !indent.is_none());
        let indent = indent.map(|indent| spaces(&indent, &b)).transpose()?;
        // Like `json.dumps`: with an indent, lines do not end in a space.
        let default = if indent.is_some() { [",", ": "] } else { [", ", ": "] };
        let [item_separator, key_separator] = match separators.as_deref() {
            None => default.map(str::to_owned),
            Some([item, key]) => [item.clone(), key.clone()],
            Some(_) => return Err(invalid("`separators` of tojson must be two strings")),
        };
        let style = JsonStyle {
            ensure_ascii: ensure_ascii.is_some_and(|ascii: Value| ascii.is_true()),
            indent,
            item_separator,
            key_separator,
            sort_keys: sort_keys.unwrap_or(false),
        };
        json(value, &style, &b)
    });
    env.add_function("raise_exception", |message: &Value| -> Result<Value, Error> {
        Err(Stop::Refused(message.to_string()).into())
    });
    env.add_function("strftime_now", move |format: &str| {
        let now = date.to_datetime(jiff::civil::Time::midnight());
        jiff::fmt::strtime::format(format, now)
            .map_err(|error| invalid(&format!("strftime_now({format:?}): {error}")))
    });
}

/// Calls a method of Python's strings, lists or dicts.
fn method(
    budget: &Budget,
    state: &State,
    value: &Value,
    name: &str,
    args: &[Value],
) -> Result<Value, Error> {
    let Some(text) = value.as_str() else {
        return pycompat::unknown_method_callback(state, value, name, args);
    };
    match name {
        "replace" => {
            let (old, new, count): (&str, &str, Option<i64>) = from_args(args)?;
            replace(text, old, new, count, budget).map(Value::from)
        }
        "join" => {
            let (values,): (&Value,) = from_args(args)?;
            join(values, text, None, budget).map(Value::from)
        }
        "count" => {
            let (what,): (&str,) = from_args(args)?;
            Ok(Value::from(text.matches(what).count()))
        }
        // Python counts positions in characters, not bytes.
        "find" | "rfind" => {
            let (what,): (&str,) = from_args(args)?;
            let byte = if name == "find" { text.find(what) } else { text.rfind(what) };
            let position =
                byte.and_then(|byte| text.get(..byte)).map(|before| before.chars().count());
            Ok(position.map_or(Value::from(-1), Value::from))
        }
        "split" | "splitlines" => {
            charge_split(value, budget)?;
            pycompat::unknown_method_callback(state, value, name, args)
        }
        // A format width could request any amount of padding, and no known chat template uses
        // `format`.
        "format" => Err(Error::new(ErrorKind::UnknownMethod, "string has no method named format")),
        _ => pycompat::unknown_method_callback(state, value, name, args),
    }
}

/// Whether Python's `iter` accepts the value. Jinja also iterates over undefined, as an empty list.
fn is_iterable(value: &Value) -> bool {
    !matches!(value.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number)
}

/// `left * right`: a product of numbers, or a string or list repeated.
fn multiply(left: &Value, right: &Value, budget: &Budget) -> Result<Value, Error> {
    let repeatable = |value: &Value| {
        matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Iterable)
    };
    let (value, times) = match (repeatable(left), repeatable(right)) {
        (true, _) => (left, right),
        (_, true) => (right, left),
        _ => return multiply_numbers(left, right),
    };
    let times = i64::try_from(times.clone())
        .map_err(|_| invalid("a string or list can only be repeated a whole number of times"))?;
    let times = usize::try_from(times).unwrap_or(0);
    if let Some(text) = value.as_str() {
        budget.take((text.len() as u64).saturating_mul(times as u64))?;
        return Ok(Value::from(text.repeat(times)));
    }
    let items: Vec<Value> = value.try_iter()?.collect();
    budget.take((items.len() as u64).saturating_mul(times as u64).saturating_mul(ELEMENT))?;
    let length = items.len() * times;
    Ok(items.into_iter().cycle().take(length).collect())
}

fn multiply_numbers(left: &Value, right: &Value) -> Result<Value, Error> {
    let number = |value: &Value| matches!(value.kind(), ValueKind::Number | ValueKind::Bool);
    if !number(left) || !number(right) {
        let (left, right) = (left.kind(), right.kind());
        return Err(invalid(&format!("cannot multiply {left} and {right}")));
    }
    match (i128::try_from(left.clone()), i128::try_from(right.clone())) {
        (Ok(a), Ok(b)) if left.is_integer() && right.is_integer() => {
            a.checked_mul(b).map(Value::from).ok_or_else(|| invalid("a product is too large"))
        }
        _ => Ok(Value::from(f64::try_from(left.clone())? * f64::try_from(right.clone())?)),
    }
}

/// `range(stop)`, `range(start, stop)`, `range(start, stop, step)`.
fn range(args: &[i64]) -> Result<Value, Error> {
    let (start, stop, step) = match *args {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] if step != 0 => (start, stop, step),
        _ => return Err(invalid("range takes one to three whole numbers and a non-zero step")),
    };
    let (start, stop, step) = (i128::from(start), i128::from(stop), i128::from(step));
    let distance = if step > 0 { stop - start } else { start - stop };
    let length = (distance.max(0) + step.abs() - 1) / step.abs();
    if length > MAX_RANGE {
        return Err(invalid(&format!("range is longer than {MAX_RANGE}")));
    }
    Ok((0..length).map(|nth| Value::from((start + nth * step) as i64)).collect())
}

fn join(
    values: &Value,
    separator: &str,
    attribute: Option<&str>,
    budget: &Budget,
) -> Result<String, Error> {
    charge_split(values, budget)?;
    let mut text = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        if index > 0 {
            budget.take(separator.len() as u64)?;
            text.push_str(separator);
        }
        let value = attribute.map_or(Ok(value.clone()), |name| value.get_attr(name))?;
        text.push_str(&str_of(&value, budget)?);
    }
    Ok(text)
}

fn replace(
    text: &str,
    old: &str,
    new: &str,
    count: Option<i64>,
    budget: &Budget,
) -> Result<String, Error> {
    let limit = count.and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX);
    let found = text.matches(old).take(limit).count() as u64;
    budget.take((text.len() as u64).saturating_add(found.saturating_mul(new.len() as u64)))?;
    Ok(text.replacen(old, new, limit))
}

/// Jinja's `indent`: indents each line, the first one only if `first` and empty ones only if
/// `blank`.
fn indent(
    text: &str,
    with: &str,
    first: bool,
    blank: bool,
    budget: &Budget,
) -> Result<String, Error> {
    let lines = text.split('\n').count() as u64;
    budget.take((text.len() as u64).saturating_add(lines.saturating_mul(with.len() as u64)))?;
    let line = |(index, line): (usize, &str)| match (index, line) {
        (0, line) if !first => line.to_owned(),
        (1.., "") if !blank => String::new(),
        (_, line) => format!("{with}{line}"),
    };
    Ok(text.split('\n').enumerate().map(line).collect::<Vec<_>>().join("\n"))
}

/// The indentation given as a number of spaces or as text.
fn spaces(width: &Value, budget: &Budget) -> Result<String, Error> {
    if let Some(text) = width.as_str() {
        return Ok(text.to_owned());
    }
    let width = i64::try_from(width.clone())
        .map_err(|_| invalid("an indent must be a number or a string"))?;
    let width = usize::try_from(width).unwrap_or(0);
    budget.take(width as u64)?;
    Ok(" ".repeat(width))
}

/// Charges for splitting a string: at worst one element per byte. Other values cost nothing.
fn charge_split(value: &Value, budget: &Budget) -> Result<(), Error> {
    budget.take(value.as_str().map_or(0, |text| text.len() as u64 * ELEMENT))
}

fn invalid(problem: &str) -> Error {
    Error::new(ErrorKind::InvalidOperation, problem.to_owned())
}
