//! The words of the command line: what can be typed, its help and its examples. No logic.

pub(crate) mod registry;

use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand, ValueEnum};

/// One verified store for a host's operating system and its containers.
///
/// Imports images from podman's storage into a composefs repository without copying file contents,
/// and shows them to an unmodified podman as read-only images.
#[derive(Debug, Parser)]
#[command(name = "composefs-store", version, after_help = EXAMPLES, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(flatten)]
    pub(crate) global: Global,
    #[command(subcommand)]
    pub(crate) command: Command,
}

const EXAMPLES: &str = "\
Examples:
  composefs-store init                                 create the repository
  composefs-store import localhost/app:1               reflink an image of podman's into it
  composefs-store pull registry.example/app:1          have podman pull it, then the same
  composefs-store publish localhost/app:1              show it to podman, read-only
  composefs-store podman-store-path                    the path for additionalimagestores
  composefs-store untag localhost/app:1 && composefs-store gc

Also here, and when called by their names: mkcomposefs, composefs-info, mount.composefs.

Exit status: 0 done, 1 failed or (fsck, verify, doctor) findings, 2 wrong usage, 130 interrupted.";

/// Options that every command takes.
#[derive(Debug, Args)]
pub(crate) struct Global {
    /// The repository [default: /sysroot/composefs where it exists, else /var/lib/composefs-store;
    /// for users $XDG_DATA_HOME/composefs-store or ~/.local/share/composefs-store]
    #[arg(long, global = true, env = "COMPOSEFS_STORE_REPO", value_name = "DIR")]
    pub(crate) repo: Option<PathBuf>,
    /// Print one JSON document instead of text (shapes: docs/json.md)
    #[arg(long, global = true)]
    pub(crate) json: bool,
    /// How to tell on standard error how far long work has come
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        value_name = "HOW"
    )]
    pub(crate) progress: ProgressArg,
    /// Say more on standard error; twice for debugging
    #[arg(long, short, global = true, action = clap::ArgAction::Count)]
    pub(crate) verbose: u8,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum ProgressArg {
    /// bars on a terminal, else nothing
    Auto,
    /// bars that are redrawn, with bytes, rate and time left
    Bars,
    /// a line when a stage or layer begins or ends
    Plain,
    /// one JSON object per line, for programs (docs/json.md), and nothing else
    Json,
    /// nothing
    None,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Create a repository
    ///
    /// Again with the same settings it does nothing; with others it fails and names both.
    Init(Init),
    /// Import images: from podman's storage, reflinking their files, or from layouts and archives
    ///
    /// A user imports from their own storage: the program goes on in a user namespace with the user's
    /// IDs of /etc/subuid and /etc/subgid, as podman does.
    #[command(after_help = "\
Examples:
  composefs-store import localhost/app:1 registry.example/debian:12
  composefs-store import --no-copy --tag base 3f1c0e9a
  composefs-store import --tag os:44 --platform linux/arm64 oci:/srv/layout:44
  podman save app:1 | composefs-store import docker-archive:/dev/stdin
  composefs-store import --storage-root /srv/containers/storage --publish localhost/app:1")]
    Import(Import),
    /// Have podman pull an image, then import it: it is in podman's storage and in the repository
    ///
    /// `podman run` goes on working from podman's storage; the files' content is on disk once. Without
    /// podman, straight into the repository: import docker://REF.
    #[command(after_help = "\
Examples:
  composefs-store pull registry.example/app:1
  composefs-store pull --authfile auth.json --platform linux/arm64 registry.example/app:1
  composefs-store pull --tls-verify=false 127.0.0.1:5000/app:1
  composefs-store pull --bootc registry.example/os:44      into bootc's storage and repository")]
    Pull(registry::Pull),
    /// List the images in the repository
    Images,
    /// Say all about an image: documents, layers, EROFS images, names, who keeps it, how podman sees it
    #[command(after_help = "\
Examples:
  composefs-store inspect localhost/app:1
  composefs-store --json inspect 3f1c0e9a | jq .config.document")]
    Inspect(Inspect),
    /// Give an image another name
    Tag(Tag),
    /// Take a name from an image; what no other name keeps goes with the next gc
    Untag(Untag),
    /// Show an image to podman as a read-only image
    #[command(after_help = "\
Examples:
  composefs-store publish localhost/app:1
  composefs-store publish --layout mounted localhost/app:1
  composefs-store publish --verified localhost/app:1

Podman finds it once storage.conf names the store (composefs-store podman-store-path):
  [storage.options]
  additionalimagestores = [ \"/var/lib/composefs-store/composefs-store/podman\" ]")]
    Publish(Publish),
    /// Stop showing an image to podman
    ///
    /// Refuses if something is built on the image or runs from it. podman commands that run may have found
    /// the image already: its layers wait for them, up to ten seconds.
    #[command(after_help = "\
Examples:
  composefs-store unpublish localhost/app:1
  composefs-store unpublish --when-unused localhost/app:1")]
    Unpublish(Unpublish),
    /// Print the directory for `additionalimagestores` in storage.conf
    PodmanStorePath,
    /// Print the lines of storage.conf with which podman finds the store, for this host and its podman
    ///
    /// What is configured already is kept in them. Where they belong is said on standard error.
    #[command(after_help = "\
Examples:
  composefs-store podman-conf
  composefs-store podman-conf --layout mounted
  composefs-store podman-conf --verified                     a file that has changed cannot be read")]
    PodmanConf(PodmanConf),
    /// Say whether this host can use what is published, and if not, why not and what mends it
    ///
    /// Looks at kernel, filesystem, podman, storage.conf, the image stores in it, mounts, units, and all
    /// that is published. The exit status is 1 if there are errors or warnings; notes do not count.
    #[command(after_help = "\
Examples:
  composefs-store doctor
  composefs-store doctor --user ann
  composefs-store doctor --fix                     mend what is ours, and say what else is to be done

docs/doctor.md lists what can be found.")]
    Doctor(Doctor),
    /// Mount the read-only view for podman and every image published in the mounted layout
    ///
    /// What the systemd unit runs at boot, before any podman. Doing it again changes nothing.
    ServeMounts(ServeMounts),
    /// Mount an image read-only on a directory
    Mount(Mount),
    /// Unmount an image
    Umount(Umount),
    /// Images to boot a host from: make them, find them, name them to a kernel
    #[command(
        subcommand,
        after_help = "\
Examples:
  composefs-store boot prepare registry.example/os:44
  composefs-store boot karg registry.example/os:44
  composefs-store boot find 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
    )]
    Boot(Boot),
    /// Give the repository another set of image formats, in place
    ///
    /// Makes what tagged images lack, and says so in meta.json last: an upgrade that was interrupted is
    /// begun again. A format that an image has is never given up.
    UpgradeFormat(UpgradeFormat),
    /// Say what takes the space: what each image has for itself, and what is shared with whom
    Df,
    /// Remove what nothing needs any more
    ///
    /// Kept is what a root needs: composefs-store roots lists them.
    #[command(after_help = "\
Examples:
  composefs-store gc --dry-run
  composefs-store gc --tags 'registry.example/app:*' --keep-last 3
  composefs-store gc --tags '*:nightly-*' --older-than 14d")]
    Gc(Gc),
    /// List what is kept for its own sake: by whom, and why
    Roots(Roots),
    /// Keep an image until it is unpinned, whatever becomes of its names; without IMAGE, list the pins
    #[command(after_help = "\
Examples:
  composefs-store pin registry.example/os:44 --reason 'last known to boot'
  composefs-store pin
  composefs-store unpin registry.example/os:44")]
    Pin(Pin),
    /// Take a pin from an image
    Unpin(Unpin),
    /// Keep whatever is in the repository under a name while something is being done
    #[command(subcommand)]
    Lease(LeaseCommand),
    /// Make everything of an image again and compare, or measure what podman is shown
    #[command(after_help = "\
Examples:
  composefs-store verify localhost/app:1
  composefs-store verify --published
  systemctl enable composefs-store-verify.service      the same at boot, before podman sees any image

Each finding names the file, what is wrong with it, and the images that need it.")]
    Verify(Verify),
    /// Check the repository: names, streams, the digest of every object, and what they mean
    #[command(after_help = "\
Examples:
  composefs-store fsck
  composefs-store fsck localhost/app:1                 only what this image needs
  composefs-store fsck --depth content --read-data
  composefs-store fsck --repair --from /mnt/backup/composefs --from docker://registry.example/app:1

Each finding names what is wrong and who needs it: images, containers, boot entries.")]
    Fsck(Fsck),
    /// Print completions of the command line for a shell
    #[command(after_help = "\
Examples:
  composefs-store completions bash >/usr/share/bash-completion/completions/composefs-store
  composefs-store completions fish >/usr/share/fish/vendor_completions.d/composefs-store.fish
  composefs-store completions zsh >/usr/local/share/zsh/site-functions/_composefs-store")]
    Completions(Completions),
    /// Write manual pages, one for each command, into a directory
    #[command(after_help = "\
Examples:
  composefs-store man /usr/local/share/man/man1 && man composefs-store-import")]
    Man(Man),
}

#[derive(Debug, Args)]
pub(crate) struct Completions {
    /// The shell
    #[arg(value_enum)]
    pub(crate) shell: clap_complete::Shell,
}

#[derive(Debug, Args)]
pub(crate) struct Man {
    /// The directory, which must exist
    #[arg(value_name = "DIR")]
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum AlgorithmArg {
    Sha512,
    Sha256,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatsArg {
    /// V1 images: those of the C tools, and of composefs-rs by default
    V1,
    /// V2 images: those of composefs-rs before 0.8
    V2,
    /// both
    Dual,
}

#[derive(Debug, Args)]
pub(crate) struct Init {
    /// The formats in which every image exists
    #[arg(long, value_enum, default_value = "v1")]
    pub(crate) format: FormatsArg,
    /// The fs-verity hash of every object
    #[arg(long, value_enum, default_value = "sha512")]
    pub(crate) algorithm: AlgorithmArg,
    /// Go without fs-verity where the filesystem has none
    ///
    /// Digests are still recorded, and fsck checks them; the kernel does not.
    #[arg(long)]
    pub(crate) insecure: bool,
}

#[derive(Debug, Args)]
#[allow(clippy::struct_excessive_bools, reason = "they are switches")]
pub(crate) struct Import {
    /// A name, ID, unique ID prefix or digest in podman's storage, or TRANSPORT:… as for skopeo
    ///
    /// Transports: containers-storage:NAME, oci:DIR[:NAME|@DIGEST], oci-archive:FILE[:NAME|@DIGEST],
    /// docker-archive:FILE[:NAME|:@POSITION], dir:DIR. Archives may be compressed or come through a pipe.
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Name of the image in the repository [default: the full names that it has where it comes from]
    #[arg(long, value_name = "NAME")]
    pub(crate) tag: Vec<String>,
    /// podman's storage [default: graphroot of storage.conf]
    #[arg(long, value_name = "DIR")]
    pub(crate) storage_root: Option<PathBuf>,
    /// Fail instead of copying a file that cannot be reflinked
    #[arg(long)]
    pub(crate) no_copy: bool,
    /// Do not compare the diff IDs of layers in podman's storage
    ///
    /// podman compared them when it stored the layers; the checksum of each file is compared all the same.
    /// `images --json` names the layers that were stored so. An import without this option reads them again.
    #[arg(long)]
    pub(crate) trust_source: bool,
    /// Publish the images afterwards
    #[arg(long)]
    pub(crate) publish: bool,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
    /// How many files to read at a time [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
    /// The platform to choose from an index, as os/arch[/variant] [default: this host's]
    #[arg(long, value_name = "PLATFORM")]
    pub(crate) platform: Option<importer::source::Platform>,
    /// Most bytes of uncompressed layers that are read, with a suffix K, M, G or T
    ///
    /// For images that come compressed. Without it the limit is the space that is free in the repository.
    #[arg(long, value_name = "SIZE", value_parser = parse_size)]
    pub(crate) max_size: Option<u64>,
    /// Import what refers to the images, too: signatures, bills of material
    #[arg(long)]
    pub(crate) with_referrers: bool,
    /// Make a tar for layers in podman's storage that have lost theirs, and thereby another image
    ///
    /// Such layers have no tar-split. The image gets other digests, and its manifest says from which one it
    /// was made; see docs/synthetic-layers.md.
    #[arg(long)]
    pub(crate) allow_synthetic: bool,
    #[command(flatten)]
    pub(crate) registry: registry::RegistryArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// The image: a tag, a manifest digest, an image ID or a unique prefix of one
    pub(crate) image: String,
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct Tag {
    /// The image: a tag, a manifest digest, an image ID or a unique prefix of one
    pub(crate) image: String,
    /// The new name
    pub(crate) name: String,
}

#[derive(Debug, Args)]
pub(crate) struct Untag {
    /// The names to remove
    #[arg(required = true)]
    pub(crate) names: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum LayoutArg {
    /// podman mounts the image itself: rootful podman 5, user namespaces work
    Blob,
    /// we mount it beforehand: podman 4.3 and newer, default mount options
    Mounted,
}

#[derive(Debug, Args)]
pub(crate) struct LayoutArgs {
    /// How podman gets at the image
    #[arg(long, value_enum, default_value = "blob")]
    pub(crate) layout: LayoutArg,
    /// The storage.conf that podman will use [default: as podman finds it]
    #[arg(long, value_name = "FILE")]
    pub(crate) storage_conf: Option<PathBuf>,
    /// Publish only if the kernel will verify everything that containers read, now and after every boot
    ///
    /// Needs a repository with fs-verity; the layout blob also needs verity=require among podman's mount
    /// options (contrib/containers-storage.verified.conf). Holds until the image is unpublished.
    #[arg(long)]
    pub(crate) verified: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Publish {
    /// The images: tags, manifest digests, image IDs or unique prefixes
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    #[command(flatten)]
    pub(crate) layout: LayoutArgs,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("what").args(["images", "published"]).required(true).multiple(true)))]
pub(crate) struct Verify {
    /// The images: tags, manifest digests, image IDs or unique prefixes
    ///
    /// Each step is made again from the one before, manifest, config, diff IDs of the layers, merged trees,
    /// EROFS images (root filesystem, boot, podman's), and compared; every object is measured, or read where
    /// the repository has no fs-verity.
    #[arg(value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Everything that podman is shown: measure the EROFS images and their objects, reading no file's content
    ///
    /// What composefs-store-verify.service runs at boot.
    #[arg(long)]
    pub(crate) published: bool,
}

#[derive(Debug, Args)]
pub(crate) struct PodmanConf {
    /// How podman gets at images
    #[arg(long, value_enum, default_value = "blob")]
    pub(crate) layout: LayoutArg,
    /// The storage.conf that podman uses now [default: as podman finds it]
    #[arg(long, value_name = "FILE")]
    pub(crate) storage_conf: Option<PathBuf>,
    /// Have the kernel compare the fs-verity digest of each file that is opened (layout blob; a repository
    /// made without --insecure)
    #[arg(long)]
    pub(crate) verified: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// Look at this user's storage.conf, too
    #[arg(long, value_name = "NAME")]
    pub(crate) user: Vec<String>,
    /// The storage.conf of root's podman [default: as podman finds it]
    #[arg(long, value_name = "FILE")]
    pub(crate) storage_conf: Option<PathBuf>,
    /// Mend what is wrong with files and mounts of ours, then look again
    #[arg(long)]
    pub(crate) fix: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Unpublish {
    /// The images: tags, manifest digests, image IDs or unique prefixes
    #[arg(required = true, value_name = "IMAGE")]
    pub(crate) images: Vec<String>,
    /// Hide an image now even if it is in use; gc removes its layers when the last user is gone
    #[arg(long)]
    pub(crate) when_unused: bool,
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

#[derive(Debug, Args)]
pub(crate) struct ServeMounts {
    /// Unmount instead
    #[arg(long)]
    pub(crate) stop: bool,
}

#[derive(Debug, Args)]
pub(crate) struct Mount {
    /// The image: a tag, a manifest digest, an image ID or a unique prefix
    pub(crate) image: String,
    /// An existing directory
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Args)]
pub(crate) struct Umount {
    /// The directory that was mounted on
    pub(crate) dir: PathBuf,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Boot {
    /// Make the boot image of an image, in each format of the repository
    ///
    /// /boot and /sysroot are emptied, and SELinux labels are those of the image's own policy. Again it
    /// does nothing.
    Prepare(BootPrepare),
    /// Print the kernel argument that boots an image
    Karg(BootKarg),
    /// Find the image whose boot image has a digest
    ///
    /// If no image has it on record, boot images are made in every format and with every xattr filter
    /// until one has it; that one is kept. So an image that another release has sealed is found.
    Find(BootFind),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum XattrsArg {
    /// security.capability and SELinux labels
    AllowlistOnly,
    /// those and what begins with `user.`
    KeepUserXattrs,
}

#[derive(Debug, Args)]
pub(crate) struct BootPrepare {
    /// The image: a tag, a manifest digest, an image ID or a unique prefix
    pub(crate) image: String,
    /// Which xattrs the boot image keeps
    #[arg(long, value_enum, default_value = "allowlist-only")]
    pub(crate) xattrs: XattrsArg,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum FormatArg {
    V1,
    V2,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum VerityArg {
    /// the image boots only with fs-verity
    Required,
    /// the image boots without fs-verity too: a `?` in the argument
    Optional,
}

#[derive(Debug, Args)]
pub(crate) struct BootKarg {
    /// The image: a tag, a manifest digest, an image ID or a unique prefix
    pub(crate) image: String,
    /// The format [default: the repository's first]
    #[arg(long, value_enum)]
    pub(crate) format: Option<FormatArg>,
    /// Print `composefs=` for every format, as bootc does, instead of `composefs.digest=` for V1
    #[arg(long)]
    pub(crate) bootc: bool,
    /// Whether fs-verity may be missing [default: as in the repository]
    #[arg(long, value_enum)]
    pub(crate) verity: Option<VerityArg>,
    /// Which xattrs the boot image keeps
    #[arg(long, value_enum, default_value = "allowlist-only")]
    pub(crate) xattrs: XattrsArg,
}

#[derive(Debug, Args)]
pub(crate) struct BootFind {
    /// The digest of the boot image, in hexadecimal
    pub(crate) digest: String,
    /// Search this image only
    #[arg(long)]
    pub(crate) image: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct UpgradeFormat {
    /// The formats that the repository is to have
    #[arg(value_enum)]
    pub(crate) formats: FormatsArg,
    /// Print what would be made, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
}

#[derive(Debug, Args)]
#[command(group(clap::ArgGroup::new("limit").args(["keep_last", "older_than"]).multiple(true)))]
pub(crate) struct Gc {
    /// Print what would go, and why, and change nothing
    #[arg(long)]
    pub(crate) dry_run: bool,
    /// Remove what interrupted deployments have left and no boot entry names
    ///
    /// Without it such files stay, with everything that they need, and are reported. Nothing of the kind
    /// is removed while anything is wrong with the boot entries and deployments that stay.
    #[arg(long)]
    pub(crate) prune_orphans: bool,
    /// Remove tags that fit this pattern first, `*` for any text, as --keep-last and --older-than say
    #[arg(long, value_name = "PATTERN", requires = "limit")]
    pub(crate) tags: Vec<String>,
    /// Keep this many tags of each pattern, those that were set last
    #[arg(long, value_name = "N", requires = "tags")]
    pub(crate) keep_last: Option<usize>,
    /// Keep tags that were set less than this long ago, such as 12h, 30d or 8w
    #[arg(long, value_name = "DURATION", requires = "tags", value_parser = duration)]
    pub(crate) older_than: Option<Duration>,
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

/// A number and a unit.
fn duration(text: &str) -> Result<Duration, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = match text.strip_prefix(digits) {
        Some("s") => 1,
        Some("m") => 60,
        Some("h") => 60 * 60,
        Some("d") => 24 * 60 * 60,
        Some("w") => 7 * 24 * 60 * 60,
        _ => return Err("a number with s, m, h, d or w is expected, such as 30d".into()),
    };
    let number: u64 = digits
        .parse()
        .map_err(|_| "there is no number".to_owned())?;
    let seconds = number.checked_mul(unit).ok_or("that is too long")?;
    Ok(Duration::from_secs(seconds))
}

#[derive(Debug, Args)]
pub(crate) struct Pin {
    /// The image: a tag, a manifest digest, an image ID or a unique prefix
    #[arg(requires = "reason")]
    pub(crate) image: Option<String>,
    /// Why it is kept, for whoever finds the pin
    #[arg(long, value_name = "TEXT", requires = "image")]
    pub(crate) reason: Option<String>,
}

#[derive(Debug, Args)]
pub(crate) struct Unpin {
    /// The image: a tag, a manifest digest, an image ID or a unique prefix
    pub(crate) image: String,
}

#[derive(Debug, Subcommand)]
pub(crate) enum LeaseCommand {
    /// Run a command with a lease
    ///
    /// As long as it runs, or anything it has started that keeps its descriptors, gc removes nothing that
    /// has a name in streams/ or images/. The number of the descriptor is in COMPOSEFS_STORE_LEASE_FD; who
    /// gets a copy of it holds the lease too. A lease ends with its holders, however they end.
    #[command(after_help = "\
Examples:
  composefs-store lease run --reason 'upgrade' -- sh -c 'composefs-store import os:45 && deploy os:45'")]
    Run(LeaseRun),
}

#[derive(Debug, Args)]
pub(crate) struct LeaseRun {
    /// What it is for, for whoever finds the lease [default: the command]
    #[arg(long, value_name = "TEXT")]
    pub(crate) reason: Option<String>,
    /// The command and its arguments
    #[arg(trailing_var_arg = true, required = true, allow_hyphen_values = true)]
    pub(crate) command: Vec<std::ffi::OsString>,
}

/// Where to look for those who need something.
#[derive(Debug, Args)]
pub(crate) struct HostArgs {
    /// The storage.conf of the podman whose containers may use published layers [default: as podman
    /// finds it]
    #[arg(long, value_name = "FILE")]
    pub(crate) storage_conf: Option<PathBuf>,
    /// The graph root of another podman whose containers may use published layers; it is remembered
    #[arg(long, value_name = "DIR")]
    pub(crate) podman_root: Vec<PathBuf>,
    /// The root filesystem with the deployments that boot from the repository [default: /sysroot, if the
    /// repository is the one in it]
    #[arg(long, value_name = "DIR")]
    pub(crate) sysroot: Option<PathBuf>,
    /// Where /boot or the EFI system partition is mounted, beside boot, boot/efi and efi in the sysroot
    #[arg(long, value_name = "DIR")]
    pub(crate) boot: Vec<PathBuf>,
}

#[derive(Debug, Args)]
pub(crate) struct Roots {
    #[command(flatten)]
    pub(crate) host: HostArgs,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum DepthArg {
    /// names, links and references
    Structure,
    /// and the digest of every object
    Content,
    /// and the diff ID of every layer, every image made again, published layers and boot entries
    Meaning,
}

#[derive(Debug, Args)]
pub(crate) struct Fsck {
    /// Check only what this image needs: a tag, a manifest digest, an image ID or a unique prefix of one
    pub(crate) image: Option<String>,
    /// How deep to look
    #[arg(long, value_enum, default_value = "meaning")]
    pub(crate) depth: DepthArg,
    /// Read objects although the kernel has their fs-verity digest, so that blocks that have rotted are found
    #[arg(long)]
    pub(crate) read_data: bool,
    /// Have what is damaged or missing stored again, then look once more
    ///
    /// Objects come from the images' originals in podman's storage, or from what --from names; EROFS
    /// images are made again from their layers. All of it is verified. Layers that were imported with
    /// --trust-source and are found to be right count as verified from then on.
    #[arg(long)]
    pub(crate) repair: bool,
    /// Another source for --repair: the directory of a composefs repository, or an image as `import` takes
    /// it, such as docker://registry.example/app:1 or oci:DIR
    #[arg(long, value_name = "SOURCE", requires = "repair")]
    pub(crate) from: Vec<String>,
    #[command(flatten)]
    pub(crate) registry: registry::RegistryArgs,
    #[command(flatten)]
    pub(crate) host: HostArgs,
    /// How many objects to check at a time [default: one for each processor]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..))]
    pub(crate) jobs: Option<u16>,
}

/// A number of bytes, with a suffix for powers of 1024.
fn parse_size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit());
    let shift = match text[digits.len()..].to_ascii_uppercase().as_str() {
        "" => 0,
        "K" => 10,
        "M" => 20,
        "G" => 30,
        "T" => 40,
        suffix => return Err(format!("{suffix:?} is not one of K, M, G, T")),
    };
    let number: u64 = digits.parse().map_err(|_| "it is not a number of bytes")?;
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| "it is too large".into())
}
