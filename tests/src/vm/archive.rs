//! Files for a guest: a second cpio archive behind the initramfs, which Linux unpacks over the first.
//!
//! The format is "newc" (Linux, Documentation/driver-api/early-userspace/buffer-format.rst): for each file a header of
//! hexadecimal numbers, its name and its content, each padded to four bytes. The folders have to exist already, or be
//! entries of their own.

/// Files, in the order in which they are unpacked.
#[derive(Clone, Debug, Default)]
pub(super) struct Archive(Vec<Entry>);

#[derive(Clone, Debug)]
struct Entry {
    path: String,
    permissions: u32,
    content: Vec<u8>,
}

const REGULAR: u32 = 0o100_000;
/// The name that ends an archive.
const END: &str = "TRAILER!!!";

impl Archive {
    /// Adds a file; its folder has to be in the initramfs.
    pub(super) fn add(&mut self, path: &str, permissions: u32, content: &[u8]) {
        self.0.push(Entry { path: path.to_owned(), permissions, content: content.to_vec() });
    }

    /// The archive as bytes, padded to a multiple of 512, as cpio does.
    pub(super) fn bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        for (index, entry) in self.0.iter().enumerate() {
            put(&mut bytes, index + 1, &entry.path, REGULAR | entry.permissions, &entry.content);
        }
        put(&mut bytes, 0, END, 0, &[]);
        pad(&mut bytes, 512);
        bytes
    }
}

/// Appends an entry. Two with the same inode number would be links to one file.
fn put(bytes: &mut Vec<u8>, inode: usize, path: &str, mode: u32, content: &[u8]) {
    let (uid, gid, links, mtime, device, check) = (0, 0, 1, 0, 0, 0);
    bytes.extend_from_slice(b"070701");
    for field in [inode, mode as usize, uid, gid, links, mtime, content.len(), device, device, device, device]
    {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    for field in [path.len() + 1, check] {
        bytes.extend_from_slice(format!("{field:08x}").as_bytes());
    }
    bytes.extend_from_slice(path.as_bytes());
    bytes.push(0);
    pad(bytes, 4);
    bytes.extend_from_slice(content);
    pad(bytes, 4);
}

fn pad(bytes: &mut Vec<u8>, multiple: usize) {
    bytes.resize(bytes.len().next_multiple_of(multiple), 0);
}
