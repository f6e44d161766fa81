//! Images of random trees, byte for byte against the C tools and composefs-rs.
//!
//! `COMPOSEFS_STORE_TREES` says how many trees each test makes. What fails is shrunk and shown as a
//! dumpfile.

use anyhow::{Context, Result, bail, ensure};
use composefs_image::dumpfile::{read_dump, write_dump};
use composefs_image::generator::{Limits, Random, Recipe};
use composefs_image::{Algorithm, Dialect, Format, Tree, WriteOptions, write_image};
use composefs_image::{Content, Kind, Metadata};
use integration::Peers;
use std::collections::HashMap;
use std::io::{Read, Write};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

const TREES: u64 = 10_000;

fn trees() -> Result<u64> {
    match std::env::var("COMPOSEFS_STORE_TREES") {
        Ok(number) => number.parse().context("COMPOSEFS_STORE_TREES"),
        Err(_) => Ok(TREES),
    }
}

pub(crate) fn dump(tree: &Tree) -> Result<Vec<u8>> {
    let mut dump = Vec::new();
    write_dump(tree, &mut dump)?;
    Ok(dump)
}

fn ours(dump: &[u8], format: Format, dialect: Dialect) -> Result<Vec<u8>> {
    let tree = read_dump(dump, dialect)?;
    let mut image = Vec::new();
    write_image(&tree, &WriteOptions { format, dialect }, &mut image)?;
    Ok(image)
}

/// A dumpfile as lines of fields.
fn lines(dump: &[u8]) -> Vec<Vec<Vec<u8>>> {
    dump.split(|&byte| byte == b'\n')
        .filter(|line| !line.is_empty())
        .map(|line| {
            line.split(|&byte| byte == b' ')
                .map(<[u8]>::to_vec)
                .collect()
        })
        .collect()
}

fn joined(lines: &[Vec<Vec<u8>>]) -> Vec<u8> {
    let lines: Vec<Vec<u8>> = lines.iter().map(|fields| fields.join(&b' ')).collect();
    [lines.join(&b'\n'), b"\n".to_vec()].concat()
}

const PATH: usize = 0;
const MODE: usize = 2;
const MTIME: usize = 7;
const PAYLOAD: usize = 8;

/// Makes other names than the first ones stand for some hard-linked inodes: C places an inode
/// where the line without `@` is.
fn with_links_turned(dump: &[u8], random: &mut Random) -> Vec<u8> {
    let mut lines = lines(dump);
    let mut full: HashMap<Vec<u8>, usize> = HashMap::new();
    for index in 0..lines.len() {
        if !lines[index][MODE].starts_with(b"@") {
            full.insert(lines[index][PATH].clone(), index);
            continue;
        }
        let target = lines[index][PAYLOAD].clone();
        let Some(&place) = full.get(&target) else {
            continue;
        };
        if random.once_in(2) {
            continue;
        }
        let path = lines[index][PATH].clone();
        lines.swap(index, place);
        lines[index][PATH].clone_from(&path);
        lines[place][PATH].clone_from(&target);
        lines[place][PAYLOAD] = path;
        full.remove(&target);
    }
    joined(&lines)
}

/// composefs-rs takes times before 1970 only as numbers above 2^63.
pub(crate) fn with_unsigned_times(dump: &[u8]) -> Result<Vec<u8>> {
    let mut lines = lines(dump);
    for fields in &mut lines {
        if fields[MTIME].starts_with(b"-") {
            let time = str::from_utf8(&fields[MTIME])?;
            let (sec, nsec) = time.split_once('.').context("a time")?;
            fields[MTIME] = format!("{}.{nsec}", sec.parse::<i64>()? as u64).into_bytes();
        }
    }
    Ok(joined(&lines))
}

/// An image, or why the peer refuses to make one.
pub(crate) type Answer = std::result::Result<Vec<u8>, String>;

/// `mkcomposefs` of the C tools.
pub(crate) struct C {
    root: PathBuf,
}

impl C {
    pub(crate) fn new(peers: &Peers) -> Result<Self> {
        let root = peers.root("sid")?;
        Ok(Self { root })
    }

    pub(crate) fn image(&self, dump: &[u8], format: Format) -> Result<Answer> {
        let number = format.number();
        let mut child = Command::new("chroot")
            .arg(&self.root)
            .args(["mkcomposefs", "--from-file"])
            .arg(format!("--min-version={number}"))
            .arg(format!("--max-version={number}"))
            .args(["-", "-"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .context("start mkcomposefs")?;
        let mut input = child.stdin.take().context("a pipe")?;
        let output = std::thread::scope(|scope| {
            // A refusal may come before all was read.
            scope.spawn(move || input.write_all(dump));
            child.wait_with_output()
        })?;
        match output.status.code() {
            Some(0) => Ok(Ok(output.stdout)),
            Some(1) => Ok(Err(String::from_utf8_lossy(&output.stderr).into_owned())),
            _ => bail!("mkcomposefs: {}", output.status),
        }
    }
}

/// The program of `integration/oracle`.
pub(crate) struct ComposefsRs {
    child: Child,
}

impl ComposefsRs {
    pub(crate) fn start(peers: &Peers) -> Result<Self> {
        let child = Command::new(peers.composefs_rs_oracle()?)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("start the program of integration/oracle")?;
        Ok(Self { child })
    }

    pub(crate) fn image(
        &mut self,
        dump: &[u8],
        format: Format,
        algorithm: Algorithm,
    ) -> Result<Answer> {
        let input = self.child.stdin.as_mut().context("a pipe")?;
        input.write_all(&[format.number(), algorithm.digest_len() as u8])?;
        input.write_all(&u32::try_from(dump.len())?.to_le_bytes())?;
        input.write_all(dump)?;
        let output = self.child.stdout.as_mut().context("a pipe")?;
        let mut header = [0; 5];
        output.read_exact(&mut header).context("it has ended")?;
        let [failed, len @ ..] = header;
        let mut answer = vec![0; u32::from_le_bytes(len) as usize];
        output.read_exact(&mut answer)?;
        Ok(match failed {
            0 => Ok(answer),
            _ => Err(String::from_utf8_lossy(&answer).into_owned()),
        })
    }
}

impl Drop for ComposefsRs {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// What came out of one tree.
enum Compared {
    Equal,
    Different(String),
    Refused(String),
}

fn compare(ours: Result<Vec<u8>>, theirs: Answer) -> Compared {
    match (ours, theirs) {
        (_, Err(refusal)) => Compared::Refused(refusal),
        (Err(error), Ok(_)) => Compared::Different(format!("we refuse: {error:#}")),
        (Ok(ours), Ok(theirs)) if ours == theirs => Compared::Equal,
        (Ok(ours), Ok(theirs)) => {
            let place = ours.iter().zip(&theirs).position(|(a, b)| a != b);
            let (ours, theirs) = (ours.len(), theirs.len());
            Compared::Different(format!(
                "{ours} and {theirs} bytes, the first difference is at {place:?}"
            ))
        }
    }
}

/// Compares all trees; what the peer refuses for another reason than `known` fails.
fn all_equal(
    dialect: Dialect,
    formats: &[Format],
    known: &str,
    mut one: impl FnMut(&Tree, u64, Format, Algorithm) -> Result<Compared>,
) -> Result<()> {
    let trees = trees()?;
    let mut refused = 0;
    for seed in 0..trees {
        let algorithm = match (dialect, seed % 2) {
            (Dialect::ComposefsRs, 1) => Algorithm::Sha512,
            _ => Algorithm::Sha256,
        };
        let recipe = Recipe::random(seed, Limits { dialect, algorithm });
        let tree = recipe.build();
        for &format in formats {
            match one(&tree, seed, format, algorithm)? {
                Compared::Equal => {}
                Compared::Refused(message) if !known.is_empty() && message.contains(known) => {
                    refused += 1;
                }
                Compared::Refused(message) => {
                    bail!("{format} of tree {seed} is refused: {message}");
                }
                Compared::Different(_) => {
                    let small = recipe.shrink(|tree| {
                        let compared = one(tree, seed, format, algorithm);
                        matches!(compared, Ok(Compared::Different(_)))
                    });
                    let tree = small.build();
                    let Compared::Different(how) = one(&tree, seed, format, algorithm)? else {
                        bail!("{format} of tree {seed} is different only sometimes");
                    };
                    let dump = String::from_utf8(dump(&tree)?)?;
                    bail!("{format} of tree {seed}, {dialect:?}: {how}\n{dump}");
                }
            }
        }
    }
    ensure!(
        refused * 10 < trees * formats.len() as u64,
        "{refused} refusals are too many to have proven anything"
    );
    Ok(())
}

#[test]
fn images_of_random_trees_are_those_of_the_c_tools() -> Result<()> {
    let c = C::new(&Peers::from_env()?)?;
    // C miscounts when a marker replaces a longer xattr of that name, and then refuses.
    let known = "Numerical result out of range";
    let formats = [Format::V0, Format::V1];
    all_equal(Dialect::C, &formats, known, |tree, seed, format, _| {
        let dump = with_links_turned(&dump(tree)?, &mut Random::new(seed));
        Ok(compare(
            ours(&dump, format, Dialect::C),
            c.image(&dump, format)?,
        ))
    })
}

#[test]
fn images_of_random_trees_are_those_of_composefs_rs() -> Result<()> {
    let mut peer = ComposefsRs::start(&Peers::from_env()?)?;
    let dialect = Dialect::ComposefsRs;
    all_equal(dialect, &Format::ALL, "", |tree, _, format, algorithm| {
        let dump = with_unsigned_times(&dump(tree)?)?;
        let theirs = peer.image(&dump, format, algorithm)?;
        Ok(compare(ours(&dump, format, dialect), theirs))
    })
}

#[test]
fn images_of_directories_of_any_size_are_those_of_both() -> Result<()> {
    let peers = Peers::from_env()?;
    let c = C::new(&peers)?;
    let mut composefs_rs = ComposefsRs::start(&peers)?;
    // Around one block, around where a tail begins to be kept, and many blocks.
    for names in [0, 1, 60, 61, 62, 120, 121, 122, 240, 10_000, 100_000] {
        let mut tree = Tree::new(Metadata::default());
        let directory = tree.add(Metadata::default(), Kind::Directory);
        tree.link(tree.root(), b"dir", directory)?;
        for number in 0..names {
            let id = tree.add(Metadata::default(), Kind::Regular(Content::EMPTY));
            let name = format!("{:022}", number * 7919 % 100_003);
            tree.link(directory, name.as_bytes(), id)?;
        }
        let dump = dump(&tree)?;
        for format in [Format::V0, Format::V1] {
            let compared = compare(ours(&dump, format, Dialect::C), c.image(&dump, format)?);
            ensure!(
                matches!(compared, Compared::Equal),
                "C, {format}, {names} names"
            );
        }
        for format in Format::ALL {
            let theirs = composefs_rs.image(&dump, format, Algorithm::Sha256)?;
            let compared = compare(ours(&dump, format, Dialect::ComposefsRs), theirs);
            ensure!(
                matches!(compared, Compared::Equal),
                "composefs-rs, {format}, {names} names"
            );
        }
    }
    Ok(())
}
