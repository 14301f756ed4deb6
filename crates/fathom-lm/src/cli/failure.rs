//! Errors of commands and their exit codes.

use std::fmt;
use std::io;

/// Why a command failed.
#[derive(Debug)]
pub enum Failure {
    /// Unusable input.
    Input(fathom_model::Error),
    /// The command ran and a check failed.
    Check(String),
    /// Standard output cannot be written.
    Stdout(io::Error),
}

impl Failure {
    /// The exit code of the process; see [`crate::cli`].
    pub fn exit_code(&self) -> u8 {
        match self {
            Failure::Check(_) => 1,
            Failure::Input(_) | Failure::Stdout(_) => 2,
        }
    }

    /// The message on one line.
    pub fn one_line(&self) -> String {
        one_line(&self.to_string())
    }
}

/// A message on one line. File names and template messages are untrusted: control characters are
/// escaped, so that they cannot control the terminal.
pub fn one_line(message: &str) -> String {
    let mut line = String::new();
    for c in message.chars() {
        match c {
            '\n' | '\r' | '\t' => line.push(' '),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Failure::Input(error) => error.fmt(f),
            Failure::Check(problem) => f.write_str(problem),
            Failure::Stdout(error) => write!(f, "standard output: cannot be written: {error}"),
        }
    }
}

impl From<fathom_model::Error> for Failure {
    fn from(error: fathom_model::Error) -> Failure {
        Failure::Input(error)
    }
}

/// In commands, `?` on an `io::Error` always means that standard output failed. Errors of files are
/// [`fathom_model::Error::Io`], which names the file.
impl From<io::Error> for Failure {
    fn from(error: io::Error) -> Failure {
        Failure::Stdout(error)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_stays_on_one_line_and_out_of_the_terminals_control() {
        let failure = Failure::Check("a\nb\u{1b}[2Jc".to_owned());
        assert_eq!(failure.one_line(), "a b\\u{1b}[2Jc");
    }
}
