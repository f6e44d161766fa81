//! Images of dumpfiles: V1 against the C tools, V2 against composefs-rs.
//!
//! All programs read the dumpfile on standard input and write the image to a file on standard output,
//! and all are started through `chroot`, which the C tools in their root directory need. What they
//! write must be equal, or there is nothing to compare.

use super::input;
use super::measure::{Contender, medians};
use super::report::Section;
use crate::steps::build;
use anyhow::{Context, Result, ensure};
use integration::peers::cache_dir;
use std::ffi::OsString;
use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};

/// The programs and where they write.
struct Programs<'s> {
    ours: PathBuf,
    ours_v2: PathBuf,
    cache: PathBuf,
    scratch: &'s Path,
}

/// Length of what the program of `integration/oracle` writes before an image.
const ANSWER: usize = 5;

pub(super) fn measure(scratch: &Path) -> Result<Section> {
    let release = ["build", "--quiet", "--release", "--package"];
    let programs = Programs {
        ours: build(
            &[&release[..], &["composefs-store"]].concat(),
            "composefs-store",
        )?,
        ours_v2: build(
            &[
                &release[..],
                &["composefs-image", "--example", "image_of_dump"],
            ]
            .concat(),
            "image_of_dump",
        )?,
        cache: cache_dir(),
        scratch,
    };
    let mut section = Section::new("Images", "cargo xtask bench image")?;
    section.paragraph(
        "Dumpfile on standard input, image into a file on standard output. Aims: V1 in 1/4 of the \
         time of C `mkcomposefs` 1.0.8 and half of its memory, V2 likewise against composefs-rs \
         0.9.4. Its `cfsctl` makes V2 images of directories only, so that V2 is measured with the \
         library behind it (`integration/oracle`, which has the whole dumpfile and the whole image \
         in memory, as the library asks for) and ours (`composefs-image`, example `image_of_dump`). \
         All images of a table are equal byte for byte. Where the load is high, user + system says \
         more than time.",
    );
    let inputs = [
        ("made like a system", input::large()?),
        ("Debian with kernel headers", input::root(&programs.ours)?),
    ];
    for (name, dump) in inputs {
        programs.compare(&mut section, name, &dump)?;
    }
    Ok(section)
}

/// A program with options in a root directory.
fn command(root: &Path, program: &Path, options: &[&str]) -> Vec<OsString> {
    let mut command: Vec<OsString> = vec!["chroot".into(), root.into(), program.into()];
    command.extend(options.iter().map(OsString::from));
    command
}

impl Programs<'_> {
    fn compare(&self, section: &mut Section, name: &str, dump: &Path) -> Result<()> {
        let entries = BufReader::new(File::open(dump)?).split(b'\n').count();
        let v1 = self.v1(dump);
        let v2 = self.v2(dump)?;
        let costs = medians(&[v1.as_slice(), v2.as_slice()].concat())?;
        for (contenders, header) in [(&v1, 0), (&v2, ANSWER)] {
            let theirs = std::fs::read(&contenders[0].output)?;
            for other in &contenders[1..] {
                ensure!(
                    Some(&*std::fs::read(&other.output)?) == theirs.get(header..),
                    "{} and {} differ",
                    contenders[0].name,
                    other.name
                );
            }
        }
        let rows: Vec<_> = v1.iter().chain(&v2).map(|c| c.name).zip(costs).collect();
        let (v1, v2) = rows.split_at(v1.len());
        section.table(&format!("V1, {name}, {entries} entries"), v1)?;
        section.table(&format!("V2, {name}, {entries} entries"), v2)
    }

    fn v1(&self, dump: &Path) -> Vec<Contender> {
        let version = ["--min-version=1", "--max-version=1"];
        let options = [&["--from-file"], &version[..], &["-", "-"]].concat();
        let sid = self.cache.join("roots/sid");
        let by_name = [&["mkcomposefs"], &options[..]].concat();
        let contender = |name, command, output| Contender {
            name,
            command,
            input: dump.to_owned(),
            output: self.scratch.join(output),
        };
        vec![
            contender(
                "C `mkcomposefs`",
                command(&sid, Path::new("mkcomposefs"), &options),
                "v1.theirs",
            ),
            contender(
                "`composefs-store mkcomposefs`",
                command(Path::new("/"), &self.ours, &by_name),
                "v1.ours",
            ),
        ]
    }

    fn v2(&self, dump: &Path) -> Result<Vec<Contender>> {
        // What the oracle reads: format, length of digests, length of the dumpfile.
        let request = self.scratch.join("request");
        let mut file = File::create(&request)?;
        file.write_all(&[2, 32])?;
        let len = std::fs::metadata(dump)?.len();
        file.write_all(&u32::try_from(len).context("the dumpfile")?.to_le_bytes())?;
        std::io::copy(&mut File::open(dump)?.take(len), &mut file)?;
        let oracle = self
            .cache
            .join("composefs-rs-oracle/bin/composefs-rs-oracle");
        let top = Path::new("/");
        Ok(vec![
            Contender {
                name: "composefs-rs as a library",
                command: command(top, &oracle, &[]),
                input: request,
                output: self.scratch.join("v2.theirs"),
            },
            Contender {
                name: "composefs-image",
                command: command(top, &self.ours_v2, &[]),
                input: dump.to_owned(),
                output: self.scratch.join("v2.ours"),
            },
        ])
    }
}
