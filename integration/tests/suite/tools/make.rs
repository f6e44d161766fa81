//! `mkcomposefs`.

use super::{Tools, agree, directory};
use anyhow::{Context, Result, ensure};
use integration::tree::Scope;
use integration::{Tree, finish, ok};
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::process::Stdio;

/// Combinations of options for a directory.
const OPTIONS: &[&[&str]] = &[
    &[],
    &["--use-epoch"],
    &["--skip-devices"],
    &["--skip-xattrs"],
    &["--user-xattrs"],
    &["--min-version=0"],
    &["--min-version=1"],
    &["--max-version=0"],
    &["--max-version=1"],
    &["--min-version", "0", "--max-version", "1"],
    &["--min-version=1", "--max-version=0"],
    &["--threads=1"],
    &["--threads=9"],
    &[
        "--use-epoch",
        "--skip-devices",
        "--user-xattrs",
        "--max-version=1",
    ],
    &["--skip-x"],
];

fn with(options: &[&str], more: &[&OsStr]) -> Vec<OsString> {
    let options = options.iter().map(OsString::from);
    options.chain(more.iter().map(OsString::from)).collect()
}

#[test]
fn images_of_a_directory_have_the_bytes_of_c_with_all_options() -> Result<()> {
    let tools = Tools::new()?;
    let source = tools.path("source");
    directory::make(&source)?;
    for _ in 0..2 {
        for options in OPTIONS {
            let args = with(options, &[source.as_os_str()]);
            tools.image(&args)?.context("an image")?;
        }
        // And once more with whiteouts, which raise the version.
        if !source.join("whiteouts").exists() {
            directory::add_whiteouts(&source)?;
        }
    }
    let only = with(&["--print-digest-only"], &[source.as_os_str()]);
    ensure!(tools.both("mkcomposefs", &only)?.text().len() == 64);
    let stdout = with(&["--print-digest"], &[source.as_os_str(), "-".as_ref()]);
    tools.both("mkcomposefs", &stdout)?;
    Ok(())
}

#[test]
fn a_digest_store_is_filled_as_by_c() -> Result<()> {
    let tools = Tools::new()?;
    let source = tools.path("source");
    directory::make(&source)?;
    let [ours, c] = ["ours", "c"].map(|whose| tools.path(whose));
    for (mut command, store) in [
        (tools.ours("mkcomposefs"), &ours),
        (tools.c("mkcomposefs"), &c),
    ] {
        let mut option = OsString::from("--digest-store=");
        option.push(store.join("new/store"));
        ok(command.arg("--print-digest-only").arg(option).arg(&source))?;
    }
    let read = |store| -> Result<Tree> {
        let mut tree = Tree::read(store, Scope::Mount)?;
        for entry in tree.entries.values_mut() {
            entry.mtime = (0, 0);
        }
        Ok(tree)
    };
    let stored = read(&ours)?;
    stored.must_equal("ours", &read(&c)?, "C")?;
    ensure!(stored.entries.len() > 10, "objects were stored");
    Ok(())
}

#[test]
fn a_dump_gives_the_image_that_it_was_made_from() -> Result<()> {
    let tools = Tools::new()?;
    let source = tools.path("source");
    directory::make(&source)?;
    directory::add_whiteouts(&source)?;
    let image = tools.image(&[&source])?.context("an image")?;
    let dump = tools.both("composefs-info", &["dump".as_ref(), image.as_os_str()])?;
    let file = tools.path("dump");
    fs::write(&file, dump.stdout)?;
    for options in [&["--from-file"][..], &["--from-file", "--min-version=1"]] {
        tools
            .image(&with(options, &[file.as_os_str()]))?
            .context("an image")?;
    }

    // From standard input to standard output, as podman does.
    let piped = |mut command: std::process::Command| -> Result<Vec<u8>> {
        command.args(["--from-file", "-", "-"]);
        let output = command.stdin(Stdio::from(File::open(&file)?)).output()?;
        ensure!(output.status.success(), "{output:?}");
        Ok(output.stdout)
    };
    let ours = piped(tools.ours("mkcomposefs"))?;
    ensure!(ours == piped(tools.c("mkcomposefs"))? && !ours.is_empty());
    Ok(())
}

#[test]
fn wrong_usage_and_bad_sources_end_with_1_and_leave_the_image_alone() -> Result<()> {
    let tools = Tools::new()?;
    let source = tools.path("source");
    fs::create_dir(&source)?;
    fs::write(source.join("file"), "x")?;
    let link = tools.path("link");
    std::os::unix::fs::symlink(&source, &link)?;
    let bad_dump = tools.path("bad.dump");
    fs::write(&bad_dump, "this is no dump\n")?;
    let image = tools.path("image");
    fs::write(&image, "as it was")?;

    let [source, link, image] = [&source, &link, &image].map(|path| path.as_os_str());
    let file = tools.path("source/file");
    let none = tools.path("none");
    for args in [
        with(&[], &[]),
        with(&[], &[source]),
        with(&[], &[source, image, image]),
        with(&["--print-digest-only"], &[source, image]),
        with(&["--threads=0"], &[source, image]),
        with(&["--threads=x"], &[source, image]),
        with(&["--min-version=2"], &[source, image]),
        with(&["--max-version=2"], &[source, image]),
        with(&["--min-version=-1"], &[source, image]),
        with(&["--min-version=x"], &[source, image]),
        with(&["--skip-xattrs", "--user-xattrs"], &[source, image]),
        with(&["--no-such-option"], &[source, image]),
        with(&[], &[none.as_os_str(), image]),
        with(&[], &["".as_ref(), image]),
        with(&[], &[file.as_os_str(), image]),
        with(&[], &[link, image]),
        with(&["--from-file"], &[bad_dump.as_os_str(), image]),
        with(&["--from-file"], &["/dev/null".as_ref(), image]),
        with(&["--from-file"], &[none.as_os_str(), image]),
        with(&[], &[source, "/no/such/directory/image".as_ref()]),
    ] {
        let done = finish(tools.ours("mkcomposefs").args(&args))?;
        ensure!(done.status.code() == Some(1), "{done}");
        ensure!(done.stdout.is_empty() && !done.stderr.is_empty(), "{done}");
        ensure!(fs::read(image)? == b"as it was", "{done}");
        let c = finish(tools.c("mkcomposefs").args(&args))?;
        agree(&done, &c)?;
        // C truncates first.
        fs::write(image, "as it was")?;
    }
    Ok(())
}

#[test]
fn an_image_that_cannot_be_written_whole_does_not_appear() -> Result<()> {
    let tools = Tools::new()?;
    let source = tools.path("source");
    fs::create_dir(&source)?;
    for i in 0..2000 {
        fs::write(source.join(format!("{i:0200}")), "x")?;
    }
    tools
        .machine
        .sh("mkdir /tmp/small && mount -t tmpfs -o size=64k tmpfs /tmp/small")?;
    let done = finish(
        tools
            .ours("mkcomposefs")
            .arg(&source)
            .arg("/tmp/small/image"),
    )?;
    ensure!(done.status.code() == Some(1), "{done}");
    ensure!(tools.machine.sh("ls -A /tmp/small")?.text().is_empty());
    // A device is written in place, not replaced.
    for (name, minor, code) in [("null", 3, 0), ("full", 7, 1)] {
        let device = tools.path(name);
        tools
            .machine
            .sh(&format!("mknod {} c 1 {minor}", device.display()))?;
        let done = finish(tools.ours("mkcomposefs").arg(&source).arg(&device))?;
        ensure!(done.status.code() == Some(code), "{done}");
        ensure!(!fs::symlink_metadata(&device)?.is_file());
        let mut to_stdout = tools.ours("mkcomposefs");
        to_stdout
            .args([source.as_os_str(), "-".as_ref()])
            .stdout(File::options().write(true).open(&device)?);
        ensure!(to_stdout.status()?.code() == Some(code));
    }
    Ok(())
}
