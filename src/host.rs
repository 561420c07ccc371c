//! The only door to the machine: files, clocks, entropy.
//!
//! Place: below `spool`, `dispatch` and `checkpoint`, which take these traits and so run unchanged under a
//! simulator that crashes, tears writes, fails a sync and jumps the clock. clippy forbids `std::fs` and the
//! clocks elsewhere in those modules. Failure: plain `io::Error`; whoever calls decides what latches.
//! Absent on purpose: network (that is `kinesis` and `ingest`) and anything asynchronous.

#![allow(clippy::disallowed_methods, reason = "the one place where files and clocks are the machine's own")]

use std::fmt::Debug;
use std::fs;
use std::io::{self, IoSlice, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// One open file. Shared between the writer and readers, hence `&self`.
#[allow(clippy::len_without_is_empty, reason = "a file is no collection, and nobody asks")]
pub trait File: Send + Sync + Debug {
    /// Reads up to `buf.len()` bytes at `offset`; 0 means end of file.
    ///
    /// # Errors
    /// Whatever the device says. A short read is no error.
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Appends all `parts` at the end of the file, as one logical write.
    ///
    /// # Errors
    /// On any failure an unknown prefix may have been written.
    fn append(&self, parts: &[&[u8]]) -> io::Result<()>;

    /// Makes all data written so far, and the length, durable (fdatasync).
    ///
    /// # Errors
    /// After a failure the state of what was not yet durable is unknown; never retry on the same file.
    fn sync_data(&self) -> io::Result<()>;

    /// Cuts or extends the file to `len` bytes.
    ///
    /// # Errors
    /// Whatever the file system says.
    fn set_len(&self, len: u64) -> io::Result<()>;

    /// Bytes in the file now.
    ///
    /// # Errors
    /// Whatever the file system says.
    fn len(&self) -> io::Result<u64>;

    /// Nothing was ever written to it, or all was cut.
    ///
    /// # Errors
    /// Whatever the file system says.
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Bytes that it takes on the disk: its length, where it lies there as it is.
    ///
    /// # Errors
    /// Whatever the file system says.
    fn stored_len(&self) -> io::Result<u64> {
        self.len()
    }

    /// Nothing more will be appended: a coded file notes what makes it quick to open. Not durable by itself.
    ///
    /// # Errors
    /// As [`File::append`]; the file is as good without.
    fn finish(&self) -> io::Result<()> {
        Ok(())
    }

    /// How it lies on the disk; `None`: byte for byte.
    fn coding(&self) -> Option<CodingOf> {
        None
    }

    /// What does not check of how it lies on the disk, a sentence each; reads all of a coded file.
    ///
    /// # Errors
    /// Whatever the device says.
    fn flaws(&self) -> io::Result<Vec<String>> {
        Ok(Vec::new())
    }

    /// Reads exactly `buf.len()` bytes at `offset`.
    ///
    /// # Errors
    /// `UnexpectedEof` when the file ends first.
    fn read_exact_at(&self, mut buf: &mut [u8], mut offset: u64) -> io::Result<()> {
        while !buf.is_empty() {
            match self.read_at(buf, offset) {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(n) => {
                    buf = &mut buf[n..];
                    offset += n as u64;
                }
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }
}

/// How a coded file lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CodingOf {
    /// Compressed.
    pub compressed: bool,
    /// Id of the key that it is encrypted with.
    pub encryption_key: Option<u64>,
}

/// Room on a file system, in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Space {
    /// What this process may still write. What is set aside for root does not count.
    pub free: u64,
    /// Its whole size; 0 where the file system does not tell.
    pub total: u64,
}

/// A tree of files.
pub trait Files: Send + Sync + Debug {
    /// Opens an existing file for reading and appending.
    ///
    /// # Errors
    /// `NotFound`, permissions, or what the device says.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// Opens an existing file for reading only, which needs no permission to write it.
    ///
    /// # Errors
    /// As [`Files::open`].
    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open(path)
    }

    /// Creates a file that must not exist yet. Its directory entry is durable only after [`Files::sync_dir`].
    ///
    /// # Errors
    /// `AlreadyExists`, no space, permissions.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;

    /// What is created here is compressed or encrypted.
    fn codes(&self) -> bool {
        false
    }

    /// Names of the entries in a directory, sorted.
    ///
    /// # Errors
    /// `NotFound`, permissions.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Removes a file.
    ///
    /// # Errors
    /// `NotFound`, permissions.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Renames a file, replacing the target.
    ///
    /// # Errors
    /// As the file system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Makes the entries of a directory durable (fsync on the directory).
    ///
    /// # Errors
    /// As [`File::sync_data`].
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Creates a directory and its parents, durable in their parents.
    ///
    /// # Errors
    /// As the file system says.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;

    /// Room on the file system that holds `path`, which must exist (statvfs). Quotas of users are not seen.
    ///
    /// # Errors
    /// `NotFound`, permissions.
    fn space(&self, path: &Path) -> io::Result<Space>;
}

/// Time: monotonic for durations, wall for what people and other machines read.
pub trait Clock: Send + Sync + Debug {
    /// Time since an arbitrary fixed moment; never goes back.
    fn monotonic(&self) -> Duration;
    /// Milliseconds since 1970-01-01 UTC; may jump.
    fn wall_ms(&self) -> u64;
}

/// Randomness, for jitter and random keys (nothing secret); and, in [`Entropy::fill`], for what must not come twice.
pub trait Entropy: Send + Sync + Debug {
    /// 64 uniformly random bits.
    fn next_u64(&self) -> u64;

    /// Fills `out` with random bytes: salts and nonces of encryption, so a real one must not repeat itself in any process.
    fn fill(&self, out: &mut [u8]) {
        for chunk in out.chunks_mut(8) {
            chunk.copy_from_slice(&self.next_u64().to_le_bytes()[..chunk.len()]);
        }
    }

    /// A uniformly random duration in `[0, max]`: full jitter.
    fn jitter(&self, max: Duration) -> Duration {
        // 53 bits make an exact f64 in [0, 1).
        max.mul_f64((self.next_u64() >> 11) as f64 / (1u64 << 53) as f64)
    }
}

/// The three of them, handed down together.
#[derive(Clone, Debug)]
pub struct Host {
    /// Files of the spool.
    pub files: Arc<dyn Files>,
    /// Both clocks.
    pub clock: Arc<dyn Clock>,
    /// Jitter and random keys.
    pub entropy: Arc<dyn Entropy>,
}

impl Host {
    /// The machine itself.
    #[must_use]
    pub fn real() -> Self {
        Self { files: Arc::new(RealFiles), clock: Arc::new(RealClock::default()), entropy: Arc::new(RealEntropy) }
    }
}

/// Events lie in these files: nobody else's business.
const FILE_MODE: u32 = 0o600;

/// As [`FILE_MODE`], for the directories we make.
const DIR_MODE: u32 = 0o700;

/// The operating system's file system.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealFiles;

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }

    fn append(&self, parts: &[&[u8]]) -> io::Result<()> {
        // Opened with O_APPEND, so the position is the end. writev takes at most IOV_MAX (1024) parts.
        let mut slices: Vec<IoSlice<'_>> = parts.iter().map(|part| IoSlice::new(part)).collect();
        let mut rest = &mut slices[..];
        while !rest.is_empty() {
            let many = rest.len().min(1024);
            match (&self.0).write_vectored(&rest[..many]) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(n) => IoSlice::advance_slices(&mut rest, n),
                Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e),
            }
            while rest.first().is_some_and(|slice| slice.is_empty()) {
                rest = &mut rest[1..];
            }
        }
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }
}

impl Files for RealFiles {
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).append(true).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn open_read(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(fs::File::open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let file = fs::OpenOptions::new().read(true).append(true).create_new(true).mode(FILE_MODE).open(path)?;
        Ok(Arc::new(RealFile(file)))
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in fs::read_dir(dir)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        let mut missing: Vec<PathBuf> = Vec::new();
        let mut at = dir;
        while !at.as_os_str().is_empty() && !at.exists() {
            missing.push(at.to_path_buf());
            match at.parent() {
                Some(parent) => at = parent,
                None => break,
            }
        }
        for path in missing.iter().rev() {
            match fs::DirBuilder::new().mode(DIR_MODE).create(path) {
                Err(e) if e.kind() != io::ErrorKind::AlreadyExists => return Err(e),
                _ => {}
            }
            if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                self.sync_dir(parent)?;
            }
        }
        Ok(())
    }

    fn space(&self, path: &Path) -> io::Result<Space> {
        let told = rustix::fs::statvfs(path)?;
        Ok(Space { free: told.f_bavail.saturating_mul(told.f_frsize), total: told.f_blocks.saturating_mul(told.f_frsize) })
    }
}

/// `CLOCK_MONOTONIC` and `CLOCK_REALTIME`.
#[derive(Clone, Copy, Debug)]
pub struct RealClock {
    start: Instant,
}

impl Default for RealClock {
    fn default() -> Self {
        Self { start: Instant::now() }
    }
}

impl Clock for RealClock {
    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }

    fn wall_ms(&self) -> u64 {
        SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
    }
}

/// std's per-thread SipHash keys, which the operating system seeds, run as a counter-based generator.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealEntropy;

impl Entropy for RealEntropy {
    fn next_u64(&self) -> u64 {
        use std::cell::Cell;
        use std::hash::{BuildHasher as _, RandomState};
        thread_local!(static STATE: Cell<u64> = Cell::new(RandomState::new().hash_one(0u8)));
        STATE.with(|state| {
            // SplitMix64 (Steele, Lea, Flood 2014).
            let next = state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
            state.set(next);
            mix64(next)
        })
    }

    fn fill(&self, out: &mut [u8]) {
        // AWS-LC's generator, seeded by the operating system.
        aws_lc_rs::rand::fill(out).expect("AWS-LC ends the process rather than fail here");
    }
}

/// The finalizer of SplitMix64; also what seeded tests use.
#[must_use]
pub const fn mix64(seed: u64) -> u64 {
    let z = (seed ^ (seed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// Moves a directory: for `checkpoint`, whose store keeps its own files and is set aside whole.
///
/// # Errors
/// As the file system says.
pub fn rename_dir(from: &Path, to: &Path) -> io::Result<()> {
    fs::rename(from, to)
}

/// What tells a file from another that has its name later: device and inode. For `checkpoint`, as [`rename_dir`].
///
/// # Errors
/// As the file system says.
pub fn file_id(path: &Path) -> io::Result<(u64, u64)> {
    use std::os::unix::fs::MetadataExt as _;
    fs::metadata(path).map(|metadata| (metadata.dev(), metadata.ino()))
}

/// An exclusive advisory lock on a file, held until the value is dropped or the process ends.
#[derive(Debug)]
pub struct DirLock(#[expect(dead_code, reason = "held for its lock")] fs::File);

/// Takes the lock; `None` when another process holds it.
///
/// # Errors
/// As the file system says.
pub fn lock(path: &Path) -> io::Result<Option<DirLock>> {
    let file = fs::OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(FILE_MODE).open(path)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(DirLock(file))),
        Err(fs::TryLockError::WouldBlock) => Ok(None),
        Err(fs::TryLockError::Error(error)) => Err(error),
    }
}

/// The process that holds [`lock`] on this file, as far as `/proc/locks` tells; looks without touching the lock.
/// `None` also where the system does not tell (another pid namespace may show as 0).
#[must_use]
pub fn lock_holder(path: &Path) -> Option<u32> {
    use std::os::unix::fs::MetadataExt as _;
    let meta = fs::metadata(path).ok()?;
    let (major, minor) = (rustix::fs::major(meta.dev()), rustix::fs::minor(meta.dev()));
    let place = format!("{major:02x}:{minor:02x}:{}", meta.ino());
    let locks = fs::read_to_string("/proc/locks").ok()?;
    // `1: FLOCK  ADVISORY  WRITE 4711 fd:01:1234 0 EOF`; who waits for one has `->` as second word.
    let line = locks.lines().find(|line| line.contains(" FLOCK ") && line.split_whitespace().any(|word| word == place))?;
    line.split_whitespace().nth(4)?.parse().ok()
}
