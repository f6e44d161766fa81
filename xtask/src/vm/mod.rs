//! `cargo xtask vm`: the tests that need fs-verity or systemd, in a virtual machine.
//!
//! A guest is a Debian trixie with systemd, its own kernel and podman, on an ext4 with fs-verity;
//! programs, tests and images come on a second disk, and a third one is a btrfs. QEMU emulates the
//! processor, so no machine is too virtual for it. There is a guest for each filesystem under the
//! repository; they run side by side, each with one processor. A guest is started once for each boot that
//! the tests are about; its disks live as long as the run.

use crate::isolate;
use crate::scratch::Scratch;
use crate::setup::{self, Root};
use crate::steps::{ok, workspace};
use crate::test;
use anyhow::{Context, Result, bail, ensure};
use integration::fixture::{Limits, noise};
use integration::peers::cache_dir;
use integration::tar::Member;
use integration::{Fixture, Peers};
use rustix::mount::mount_bind;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::time::{Duration, Instant};

/// The hidden subcommand that runs in the namespaces.
pub(crate) const STAGE: &str = "__vm";

/// How often the guest is started: `guest` has the tests of boot N in modules called `boot_N`.
const BOOTS: u32 = 2;

/// The filesystems under the repository, which the guests learn as `DISK`.
const GUESTS: [&str; 2] = ["ext4", "btrfs"];

/// Below the directory of disks and kernel: a directory for each guest.
const GUEST_FILES: &str = "guests";

/// The disks of a guest, in the order of their devices.
const DISKS: [&str; 3] = ["root", "work", "btrfs"];

/// A boot with its tests takes two to three minutes on an idle machine.
const BOOT_LIMIT: Duration = Duration::from_secs(30 * 60);

/// What the guest runs.
pub(crate) const GUEST: Root = Root {
    name: "vm-guest",
    release: "trixie",
    packages: &[
        "btrfs-progs",
        "crun",
        "dbus",
        "e2fsprogs",
        "fsverity",
        "kmod",
        "linux-image-cloud-amd64",
        "mount",
        "podman",
        "skopeo",
        "systemd-sysv",
        "udev",
    ],
    // A small initramfs: the guest unpacks it at the speed of an emulated processor.
    before: r#"mkdir -p "$1/etc/initramfs-tools/conf.d"
printf 'MODULES=list\nCOMPRESS=lz4\nRESUME=none\n' >"$1/etc/initramfs-tools/conf.d/vm"
printf 'virtio_blk\n' >"$1/etc/initramfs-tools/modules""#,
    after: concat!(
        r#"mkdir -p "$1/work" "$1/btrfs"
printf '/dev/vda / ext4 defaults 0 0\nLABEL=work /work ext4 defaults 0 0\nLABEL=btrfs /btrfs btrfs defaults 0 0\n' >"$1/etc/fstab"
systemctl --root "$1" mask getty@tty1 serial-getty@ttyS0 serial-getty@hvc0 apt-daily.timer apt-daily-upgrade.timer
cat >"$1/etc/systemd/system/guest.service" <<END
"#,
        include_str!("guest.service"),
        "END\n",
    ),
};

/// What QEMU runs in: that of Debian 12 crashes this kernel.
pub(crate) const EMULATOR: Root = Root {
    name: "vm-emulator",
    release: "trixie",
    packages: &["qemu-system-x86"],
    before: "",
    after: "",
};

/// Builds the programs and the disks, and runs the tests, or only those whose names contain `filter`.
pub(crate) fn run(filter: Option<&str>) -> Result<ExitCode> {
    setup::for_vm()?;
    let scratch = Scratch::new()?;
    let programs = programs()?;
    run_in(scratch, &programs, filter)
}

/// The programs that go into the guest: name there, and file here.
pub(crate) type Programs = Vec<(&'static str, PathBuf)>;

/// Builds the program and the guest's tests.
pub(crate) fn programs() -> Result<Programs> {
    Ok(vec![
        ("composefs-store", test::program()?),
        ("guest", test::test_program("guest")?),
    ])
}

/// Makes the disks in `scratch` and runs the tests on them.
pub(crate) fn run_in(
    scratch: Scratch,
    programs: &Programs,
    filter: Option<&str>,
) -> Result<ExitCode> {
    disks(scratch.path(), programs).context("make the disks of the virtual machine")?;
    let mut stage: Vec<OsString> = vec![std::env::current_exe()?.into(), STAGE.into()];
    stage.extend(filter.map(OsString::from));
    isolate::run(scratch, &stage)
}

/// The directory of disks and kernel below the scratch directory.
fn files(scratch: &Path) -> PathBuf {
    scratch.join("vm")
}

fn disks(scratch: &Path, programs: &Programs) -> Result<()> {
    let files = files(scratch);
    let guest = cache_dir().join("roots").join(GUEST.name);
    std::fs::create_dir(&files)?;
    std::fs::copy(only(&guest.join("boot"), "vmlinuz-")?, files.join("kernel"))?;
    std::fs::copy(
        only(&guest.join("boot"), "initrd.img-")?,
        files.join("initrd"),
    )?;
    ext4(&files.join("root"), &guest, "root", "4G")?;

    let work = files.join("work.d");
    let bin = work.join("bin");
    std::fs::create_dir_all(&bin)?;
    for (name, program) in programs {
        std::fs::copy(program, bin.join(name))
            .with_context(|| format!("copy {}", program.display()))?;
    }
    std::fs::write(work.join("guest.sh"), include_str!("guest.sh"))?;
    ok(Command::new("cp")
        .arg("-r")
        .arg(workspace().join("contrib"))
        .arg(&work))?;
    Fixture::hard(&work.join("layout"), Limits::NONE)?;
    let own = Member::file("small", noise(9, 1000));
    Fixture::with_one_layer(&work.join("small"), vec![own])?;
    ext4(&files.join("work"), &work, "work", "1G")?;
    std::fs::remove_dir_all(work)?;

    let btrfs = files.join("btrfs");
    std::fs::File::create(&btrfs)?.set_len(1 << 30)?;
    ok(Command::new("mkfs.btrfs")
        .args(["--quiet", "--label", "btrfs"])
        .arg(btrfs))?;
    for guest in GUESTS {
        let own = files.join(GUEST_FILES).join(guest);
        std::fs::create_dir_all(&own)?;
        ok(Command::new("cp")
            .args(["--sparse=always", "--reflink=auto"])
            .args(DISKS.map(|disk| files.join(disk)))
            .arg(own))?;
    }
    Ok(())
}

/// The one file in `dir` whose name begins with `prefix`.
fn only(dir: &Path, prefix: &str) -> Result<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir).with_context(|| format!("list {}", dir.display()))? {
        let entry = entry?;
        if entry.file_name().to_string_lossy().starts_with(prefix) {
            found.push(entry.path());
        }
    }
    ensure!(
        found.len() == 1,
        "{} should have one {prefix}*",
        dir.display()
    );
    found.pop().context("no file")
}

/// Makes a disk with a copy of `content`, without mounting it.
fn ext4(disk: &Path, content: &Path, label: &str, size: &str) -> Result<()> {
    ok(Command::new("mkfs.ext4")
        .args(["-q", "-O", "verity", "-b", "4096", "-L", label, "-d"])
        .args([content, disk])
        .arg(size))
}

/// Boots the guests again and again, in the namespaces.
pub(crate) fn stage(filter: Option<&str>) -> Result<ExitCode> {
    let peers = Peers::from_env()?;
    let emulator = peers.root(EMULATOR.name)?;
    // An existing directory of the root, hidden in this mount namespace alone.
    let inside = Path::new("/mnt");
    let files = files(peers.scratch());
    mount_bind(&files, emulator.join("mnt")).context("show QEMU its disks")?;
    let results = std::thread::scope(|scope| {
        let guests = GUESTS.map(|name| {
            let guest = Guest {
                name,
                emulator: &emulator,
                inside,
                files: &files,
            };
            scope.spawn(move || guest.boot_all(filter))
        });
        guests.map(|guest| guest.join().unwrap_or_else(|_| bail!("a thread panicked")))
    });
    results.into_iter().collect::<Result<()>>()?;
    Ok(ExitCode::SUCCESS)
}

/// A virtual machine.
#[derive(Clone, Copy)]
struct Guest<'a> {
    /// What it is about, and the directory of its files.
    name: &'static str,
    /// The root directory with QEMU.
    emulator: &'a Path,
    /// The directory of files in there.
    inside: &'a Path,
    /// The same, seen from here.
    files: &'a Path,
}

impl Guest<'_> {
    fn boot_all(self, filter: Option<&str>) -> Result<()> {
        let own = self.files.join(GUEST_FILES).join(self.name);
        for boot in 1..=BOOTS {
            let begin = Instant::now();
            for output in ["tests", "verdict"] {
                std::fs::write(own.join(output), "")?;
            }
            let result = self.run_qemu(boot, filter);
            let tests = std::fs::read(own.join("tests"))?;
            // At once: the guests run side by side.
            eprintln!(
                "-- {}, boot {boot} of {BOOTS}, {:.0} s\n{}",
                self.name,
                begin.elapsed().as_secs_f64(),
                String::from_utf8_lossy(&tests).trim_end()
            );
            if result.is_err() || std::fs::read_to_string(own.join("verdict"))?.trim() != "passed" {
                let console = std::fs::read(own.join("serial")).unwrap_or_default();
                let console = String::from_utf8_lossy(&console);
                let lines: Vec<&str> = console.lines().collect();
                eprintln!("{}", lines[lines.len().saturating_sub(60)..].join("\n"));
                result?;
                bail!(
                    "boot {boot} of the virtual machine for {} failed; above, its kernel's last words",
                    self.name
                );
            }
        }
        Ok(())
    }

    fn run_qemu(self, boot: u32, filter: Option<&str>) -> Result<()> {
        let shared = |name: &str| self.inside.join(name).display().to_string();
        let directory = self.inside.join(GUEST_FILES).join(self.name);
        let own = |name: &str| directory.join(name).display().to_string();
        let append = format!(
            "root=/dev/vda rw console=ttyS0 panic=-1 mitigations=off systemd.show_status=false \
             systemd.default_device_timeout_sec={} systemd.wants=guest.service \
             systemd.setenv=BOOT={boot} systemd.setenv=DISK={} systemd.setenv=FILTER={}",
            // On a busy machine a guest takes minutes to find its disks.
            BOOT_LIMIT.as_secs(),
            self.name,
            filter.unwrap_or_default()
        );
        let mut qemu = Command::new("chroot");
        qemu.arg(self.emulator)
            .args([
                "qemu-system-x86_64",
                "-nodefaults",
                "-nographic",
                "-no-reboot",
            ])
            .args([
                "-machine",
                "q35,sata=off",
                "-cpu",
                "max,svm=off",
                "-accel",
                "tcg",
            ])
            .args(["-smp", "1", "-m", "1536"])
            .args(["-kernel", &shared("kernel"), "-initrd", &shared("initrd")])
            .args(["-append", &append])
            .args(["-serial", &format!("file:{}", own("serial"))])
            .args(["-device", "virtio-serial"])
            .args(["-chardev", &format!("file,id=tests,path={}", own("tests"))])
            .args(["-device", "virtconsole,chardev=tests"])
            .args([
                "-chardev",
                &format!("file,id=verdict,path={}", own("verdict")),
            ])
            .args(["-device", "virtserialport,chardev=verdict,name=verdict"])
            .stdin(Stdio::null());
        for disk in DISKS {
            let disk = own(disk);
            qemu.args([
                "-drive",
                &format!("file={disk},if=virtio,format=raw,cache=unsafe"),
            ]);
        }
        let mut qemu = qemu.spawn().context("start QEMU")?;
        let end = Instant::now() + BOOT_LIMIT;
        loop {
            if let Some(status) = qemu.try_wait()? {
                ensure!(status.success(), "QEMU: {status}");
                return Ok(());
            }
            if Instant::now() > end {
                qemu.kill()?;
                qemu.wait()?;
                bail!("boot {boot} did not end within {} s", BOOT_LIMIT.as_secs());
            }
            std::thread::sleep(Duration::from_millis(200));
        }
    }
}
