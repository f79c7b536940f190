//! File trees as cpio archives of the format "newc", which Linux takes for an initial RAM file system
//! (Documentation/driver-api/early-userspace/buffer-format.rst in its source).
//!
//! Everything in them belongs to root, and bytes depend on nothing but what was put in.

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

/// What is in a file.
#[derive(Clone, Debug)]
enum Contents {
    /// These bytes.
    Bytes(Vec<u8>),
    /// What is in this file when the archive is written.
    File(PathBuf),
}

/// What is at a path.
#[derive(Clone, Debug)]
enum Node {
    Directory,
    File(Contents),
    Link(PathBuf),
    /// A character device, with its numbers.
    Device(u32, u32),
}

/// A file tree that is to be an archive. Directories above what is put in need not be put in, and what is
/// put in later replaces what was there.
#[derive(Clone, Debug, Default)]
pub struct Archive(BTreeMap<PathBuf, (Node, u32)>);

impl Archive {
    /// An empty tree.
    pub fn new() -> Self {
        Self::default()
    }

    fn put(&mut self, path: impl AsRef<Path>, node: Node, mode: u32) {
        let path = path.as_ref().strip_prefix("/").unwrap_or(path.as_ref());
        for above in path.ancestors().skip(1).filter(|above| !above.as_os_str().is_empty()) {
            self.0.entry(above.to_path_buf()).or_insert((Node::Directory, 0o755));
        }
        self.0.insert(path.to_path_buf(), (node, mode & 0o7777));
    }

    /// Puts a directory there.
    pub fn directory(&mut self, path: impl AsRef<Path>, mode: u32) {
        self.put(path, Node::Directory, mode);
    }

    /// Puts a file with these bytes there.
    pub fn bytes(&mut self, path: impl AsRef<Path>, mode: u32, bytes: impl Into<Vec<u8>>) {
        self.put(path, Node::File(Contents::Bytes(bytes.into())), mode);
    }

    /// Puts a copy of a file there.
    pub fn file(&mut self, path: impl AsRef<Path>, mode: u32, source: impl Into<PathBuf>) {
        self.put(path, Node::File(Contents::File(source.into())), mode);
    }

    /// Puts a symbolic link there.
    pub fn link(&mut self, path: impl AsRef<Path>, target: impl Into<PathBuf>) {
        self.put(path, Node::Link(target.into()), 0o777);
    }

    /// Puts a character device there.
    pub fn device(&mut self, path: impl AsRef<Path>, mode: u32, major: u32, minor: u32) {
        self.put(path, Node::Device(major, minor), mode);
    }

    /// Takes away what is there.
    pub fn remove(&mut self, path: impl AsRef<Path>) {
        self.0.remove(path.as_ref());
    }

    /// Changes the mode of what is there, if something is.
    pub fn mode(&mut self, path: impl AsRef<Path>, mode: u32) {
        if let Some((_, old)) = self.0.get_mut(path.as_ref()) {
            *old = mode;
        }
    }

    /// Puts a copy of a directory's contents there, each at the path that `place` makes of its path below
    /// `source`, or not at all. What is below a directory that is left out is left out, too.
    ///
    /// # Errors
    /// If something can not be read.
    pub fn tree(
        &mut self,
        source: &Path,
        place: &dyn Fn(&Path) -> Option<PathBuf>,
    ) -> io::Result<()> {
        self.subtree(source, Path::new(""), place)
    }

    fn subtree(
        &mut self,
        source: &Path,
        below: &Path,
        place: &dyn Fn(&Path) -> Option<PathBuf>,
    ) -> io::Result<()> {
        for entry in fs::read_dir(source.join(below))? {
            let entry = entry?;
            let path = below.join(entry.file_name());
            let Some(to) = place(&path) else { continue };
            let metadata = entry.metadata()?;
            let mode = metadata.permissions().mode();
            if metadata.is_dir() {
                self.directory(to, mode);
                self.subtree(source, &path, place)?;
            } else if metadata.is_symlink() {
                self.link(to, fs::read_link(entry.path())?);
            } else if metadata.is_file() {
                self.file(to, mode, entry.path());
            }
        }
        Ok(())
    }

    /// Writes the archive.
    ///
    /// # Errors
    /// If a file can not be read, or the archive can not be written.
    pub fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        for (inode, (path, (node, mode))) in self.0.iter().enumerate() {
            let bytes = match node {
                Node::File(Contents::Bytes(bytes)) => bytes.clone(),
                Node::File(Contents::File(source)) => fs::read(source).map_err(|error| {
                    io::Error::new(error.kind(), format!("{}: {error}", source.display()))
                })?,
                Node::Link(target) => target.as_os_str().as_encoded_bytes().to_vec(),
                Node::Directory | Node::Device(..) => Vec::new(),
            };
            let (kind, device) = match node {
                Node::Directory => (libc::S_IFDIR, (0, 0)),
                Node::File(_) => (libc::S_IFREG, (0, 0)),
                Node::Link(_) => (libc::S_IFLNK, (0, 0)),
                Node::Device(major, minor) => (libc::S_IFCHR, (*major, *minor)),
            };
            member(out, inode as u32 + 1, kind | mode, device, path, &bytes)?;
        }
        member(out, 0, 0, (0, 0), Path::new("TRAILER!!!"), &[])
    }

    /// Writes the archive to a new file.
    ///
    /// # Errors
    /// As for [`Archive::write`].
    pub fn write_to(&self, path: &Path) -> io::Result<()> {
        let mut out = io::BufWriter::new(fs::File::create(path)?);
        self.write(&mut out)?;
        out.flush()
    }
}

/// Writes a member: a header of ASCII, the name with its end, and the contents, each padded to four bytes.
fn member(
    out: &mut dyn Write,
    inode: u32,
    mode: u32,
    (major, minor): (u32, u32),
    path: &Path,
    bytes: &[u8],
) -> io::Result<()> {
    let name = path.as_os_str().as_encoded_bytes();
    let size = u32::try_from(bytes.len()).map_err(io::Error::other)?;
    let name_size = name.len() as u32 + 1;
    // Magic, inode, mode, owner, group, links, time, size, device of the file system, device, name size,
    // checksum.
    let fields = [inode, mode, 0, 0, 1, 0, size, 0, 0, major, minor, name_size, 0];
    let mut header = String::from("070701");
    for field in fields {
        header.push_str(&format!("{field:08x}"));
    }
    out.write_all(header.as_bytes())?;
    out.write_all(name)?;
    // Headers are of 110 bytes.
    let padding = |length: usize| &[0; 4][..length.wrapping_neg() % 4];
    out.write_all(&[0])?;
    out.write_all(padding(header.len() + name.len() + 1))?;
    out.write_all(bytes)?;
    out.write_all(padding(bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The members of an archive: mode, path and contents.
    fn members(mut archive: &[u8]) -> Vec<(u32, String, Vec<u8>)> {
        let mut members = Vec::new();
        loop {
            let field = |index: usize| {
                let text = std::str::from_utf8(&archive[6 + 8 * index..][..8]).unwrap();
                u32::from_str_radix(text, 16).unwrap()
            };
            assert_eq!(&archive[..6], b"070701");
            let (mode, size, name_size) = (field(1), field(6) as usize, field(11) as usize);
            let name = String::from_utf8(archive[110..][..name_size - 1].to_vec()).unwrap();
            let start = (110 + name_size).next_multiple_of(4);
            if name == "TRAILER!!!" {
                assert_eq!(archive.len(), start);
                return members;
            }
            members.push((mode, name, archive[start..][..size].to_vec()));
            archive = &archive[(start + size).next_multiple_of(4)..];
        }
    }

    #[test]
    fn what_is_put_in_is_there_with_its_parents_before_it() {
        let mut archive = Archive::new();
        archive.bytes("/usr/bin/tool", 0o4755, "x".repeat(13));
        archive.bytes("/usr/bin/tool", 0o755, "y".repeat(14));
        archive.link("/bin", "usr/bin");
        archive.device("dev/console", 0o600, 5, 1);
        archive.directory("/usr-other", 0o755);
        archive.mode("usr-other", 0o700);
        archive.bytes("tmp", 0o644, "");
        archive.remove("tmp");
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let (directory, file) = (libc::S_IFDIR, libc::S_IFREG);
        assert_eq!(
            members(&bytes),
            [
                (libc::S_IFLNK | 0o777, "bin".into(), b"usr/bin".to_vec()),
                (directory | 0o755, "dev".into(), vec![]),
                (libc::S_IFCHR | 0o600, "dev/console".into(), vec![]),
                (directory | 0o755, "usr".into(), vec![]),
                (directory | 0o755, "usr/bin".into(), vec![]),
                (file | 0o755, "usr/bin/tool".into(), vec![b'y'; 14]),
                (directory | 0o700, "usr-other".into(), vec![]),
            ]
        );
    }

    #[test]
    fn a_tree_is_copied_to_where_it_is_told() {
        let source = tempfile::tempdir().unwrap();
        let path = |name: &str| source.path().join(name);
        fs::create_dir_all(path("lib/deep")).unwrap();
        fs::create_dir(path("doc")).unwrap();
        fs::write(path("lib/deep/a"), "abc").unwrap();
        fs::set_permissions(path("lib/deep/a"), PermissionsExt::from_mode(0o4711)).unwrap();
        std::os::unix::fs::symlink("deep/a", path("lib/b")).unwrap();
        fs::write(path("doc/c"), "not this").unwrap();
        let mut archive = Archive::new();
        let place = |path: &Path| (!path.starts_with("doc")).then(|| Path::new("usr").join(path));
        archive.tree(source.path(), &place).unwrap();
        let mut bytes = Vec::new();
        archive.write(&mut bytes).unwrap();
        let members = members(&bytes);
        let names: Vec<_> = members.iter().map(|(_, name, _)| name.as_str()).collect();
        assert_eq!(names, ["usr", "usr/lib", "usr/lib/b", "usr/lib/deep", "usr/lib/deep/a"]);
        assert_eq!(members[2].2, b"deep/a");
        assert_eq!((members[4].0, &members[4].2[..]), (libc::S_IFREG | 0o4711, &b"abc"[..]));
    }
}
