//! The tools of the C project by their own names: `mkcomposefs`, `composefs-info`, `mount.composefs`.
//!
//! Called by such a name (a symlink to this binary) or as `composefs-store NAME …`. Options and exit
//! status are those of the C tools, where wrong usage is 1 too.

mod info;
mod mkcomposefs;
mod mount;

use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::process::ExitCode;

use clap::Parser;

/// Runs the tool that the first argument, the name of the program, or the second asks for; `None` when
/// neither does.
pub(crate) fn by_name(mut args: impl Iterator<Item = OsString>) -> Option<ExitCode> {
    let program = args.next()?;
    let own_name = Path::new(&program).file_name().and_then(Tool::named);
    let tool = match own_name {
        Some(tool) => tool,
        None => Tool::named(&args.next()?)?,
    };
    let args = std::iter::once(OsString::from(tool.name())).chain(args);
    Some(tool.run(args))
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Tool {
    Mkcomposefs,
    Info,
    Mount,
}

impl Tool {
    const ALL: [Self; 3] = [Self::Mkcomposefs, Self::Info, Self::Mount];

    const fn name(self) -> &'static str {
        match self {
            Self::Mkcomposefs => "mkcomposefs",
            Self::Info => "composefs-info",
            Self::Mount => "mount.composefs",
        }
    }

    fn named(name: &OsStr) -> Option<Self> {
        Self::ALL.into_iter().find(|tool| name == tool.name())
    }

    fn run(self, args: impl Iterator<Item = OsString>) -> ExitCode {
        let done = match self {
            Self::Mkcomposefs => parse(args).map(|args| mkcomposefs::run(&args)),
            Self::Info => parse(args).map(info::run),
            Self::Mount => parse(args).map(|args| mount::run(&args)),
        };
        match done {
            Ok(Ok(())) => ExitCode::SUCCESS,
            Ok(Err(error)) if crate::is_broken_pipe(&error) => ExitCode::SUCCESS,
            Ok(Err(error)) => {
                eprintln!("{}: {}", self.name(), crate::sentence(&error));
                ExitCode::FAILURE
            }
            Err(exit_code) => exit_code,
        }
    }
}

/// Help is on standard output with status 0; wrong usage has the status of any other failure.
fn parse<T: Parser>(args: impl Iterator<Item = OsString>) -> Result<T, ExitCode> {
    T::try_parse_from(args).map_err(|error| {
        let status = if error.use_stderr() {
            ExitCode::FAILURE
        } else {
            ExitCode::SUCCESS
        };
        // Nobody is left to tell when this fails.
        let _ = error.print();
        status
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tools_have_the_names_of_the_c_project() {
        for tool in Tool::ALL {
            assert_eq!(Tool::named(OsStr::new(tool.name())), Some(tool));
        }
        assert_eq!(Tool::named(OsStr::new("composefs-store")), None);
    }

    #[test]
    fn other_names_and_commands_are_left_alone() {
        let run = |args: &[&str]| by_name(args.iter().map(OsString::from));
        assert!(run(&[]).is_none());
        assert!(run(&["composefs-store"]).is_none());
        assert!(run(&["/usr/bin/composefs-store", "import", "mkcomposefs"]).is_none());
        assert!(run(&["composefs-store", "mkcomposefs", "--help"]).is_some());
        assert!(run(&["/usr/bin/composefs-info", "--help"]).is_some());
    }

    #[test]
    fn words_of_all_tools_fit_together() {
        use clap::CommandFactory as _;
        mkcomposefs::Mkcomposefs::command().debug_assert();
        info::Info::command().debug_assert();
        mount::Mount::command().debug_assert();
    }
}
