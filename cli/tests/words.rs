//! What the program says about itself: help, completions, manual pages.
#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Output};

fn run(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_composefs-store"))
        .args(arguments)
        .output()
        .unwrap()
}

fn said(arguments: &[&str]) -> String {
    let output = run(arguments);
    assert!(output.status.success(), "{arguments:?}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// The names below "Commands:".
fn commands(above: &[&str]) -> Vec<String> {
    let help = said(&[above, &["--help"]].concat());
    let Some((_, list)) = help.split_once("Commands:\n") else {
        return Vec::new();
    };
    let (list, _) = list.split_once("\n\n").unwrap_or((list, ""));
    let names = list.lines().filter_map(|line| {
        let name = line.strip_prefix("  ")?;
        name.split_whitespace()
            .next()
            .filter(|_| !name.starts_with(' '))
    });
    names.map(str::to_owned).collect()
}

#[test]
fn every_command_has_help_and_the_exit_status_of_wrong_usage_is_2() {
    let all = commands(&[]);
    assert!(all.len() > 25, "{all:?}");
    for command in &all {
        let help = said(&[command, "--help"]);
        assert!(help.contains("Usage: composefs-store"), "{help}");
        assert_eq!(run(&[command, "--no-such-option"]).status.code(), Some(2));
    }
}

#[test]
fn completions_of_every_shell_know_every_command() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let script = said(&["completions", shell]);
        for command in commands(&[]) {
            assert!(script.contains(&command), "{shell}: {command}");
        }
    }
    let script = said(&["completions", "bash"]);
    let checked = Command::new("bash")
        .args(["-nc", &script])
        .output()
        .unwrap();
    assert!(checked.status.success(), "{checked:?}");
}

#[test]
fn there_is_a_manual_page_for_every_command() {
    let dir = tempfile::tempdir().unwrap();
    said(&["man", dir.path().to_str().unwrap()]);
    let pages: BTreeSet<String> = std::fs::read_dir(dir.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    assert!(pages.contains("composefs-store.1"), "{pages:?}");
    for command in commands(&[]) {
        let page = format!("composefs-store-{command}.1");
        assert!(pages.contains(&page), "{page} of {pages:?}");
        for below in commands(&[&command]) {
            let page = format!("composefs-store-{command}-{below}.1");
            assert!(pages.contains(&page), "{page} of {pages:?}");
        }
    }
    let import = std::fs::read_to_string(dir.path().join("composefs-store-import.1")).unwrap();
    assert!(import.contains("trust\\-source"), "{import}");
    assert!(import.contains("oci:/srv/layout:44"), "{import}");
    let nowhere = Path::new("/nonexistent");
    let failed = run(&["man", nowhere.to_str().unwrap()]);
    assert_eq!(failed.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&failed.stderr).contains("/nonexistent"));
}
