//! How a program of the rust-vmm world serves a disk of ours with its own daemon: the stock `VhostUserDaemon`, spoken
//! to here by the stock front-end of the crate `vhost`.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_backend::adapter;
use sluice_backend::device::{Device, DeviceOptions};
use sluice_backend::workers::Workers;
use sluice_blk::disk::{Cache, Disk, DiskOptions};
use vhost::vhost_user::message::{VhostUserConfigFlags, VhostUserProtocolFeatures};
use vhost::vhost_user::{Frontend, VhostUserFrontend};
use vhost::{VhostBackend, VhostUserMemoryRegionInfo, VringConfigData};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// VIRTIO_F_VERSION_1, VHOST_USER_F_PROTOCOL_FEATURES, VIRTIO_BLK_F_FLUSH.
const WANTED: u64 = 1 << 32 | 1 << 30 | 1 << 9;

/// The embedding program: opens a disk, makes it a device and hands that to its daemon.
fn serve(path: &Path, socket: &Path) {
    let disk =
        Disk::open(&DiskOptions { cache: Some(Cache::Writeback), ..DiskOptions::new(path) }).expect("a disk");
    let options = DeviceOptions {
        num_queues: 2,
        queue_size: 128,
        serial: Some("embedded".to_owned()),
        memory_budget: None,
        in_order: false,
    };
    let device = Device::new(disk, &options).expect("a device");
    let workers = Workers::start(1).expect("a thread");
    let mut daemon = adapter::daemon("embedder", Arc::new(device), workers).expect("a daemon");
    daemon.serve(socket).expect("a connection, from its start to its end");
}

/// A guest: 64 KiB of memory, in which the ring is at the start and a request at 0x8000.
struct Guest {
    memory: File,
    kick: EventFd,
    call: EventFd,
    requests: u16,
}

const MEMORY: u64 = 0x1_0000;
const AVAIL: u64 = 0x1000;
const USED: u64 = 0x2000;
const HEADER: u64 = 0x8000;
const STATUS: u64 = 0x8010;
const DATA: u64 = 0x9000;
/// Where the front-end has the memory.
const USER: u64 = 0x7000_0000_0000;

impl Guest {
    fn new() -> Self {
        let memory = File::from(memfd_create("guest", MemfdFlags::CLOEXEC).expect("memfd_create(2)"));
        memory.set_len(MEMORY).expect("address space");
        let event = || EventFd::new(EFD_NONBLOCK).expect("an event fd");
        Self { memory, kick: event(), call: event(), requests: 0 }
    }

    fn write(&self, at: u64, bytes: &[u8]) {
        self.memory.write_all_at(bytes, at).expect("it is in the memory");
    }

    fn read<const N: usize>(&self, at: u64) -> [u8; N] {
        let mut bytes = [0; N];
        self.memory.read_exact_at(&mut bytes, at).expect("it is in the memory");
        bytes
    }

    /// One request of 512 bytes: its status, once the device calls.
    fn request(&mut self, kind: u32, sector: u64) -> u8 {
        self.write(HEADER, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        let data_flags = if kind == 1 { 1 } else { 1 | 2 };
        for (n, (addr, len, flags)) in
            (0_u16..).zip([(HEADER, 16_u32, 1_u16), (DATA, 512, data_flags), (STATUS, 1, 2)])
        {
            let desc =
                [&addr.to_le_bytes()[..], &len.to_le_bytes(), &flags.to_le_bytes(), &(n + 1).to_le_bytes()];
            self.write(16 * u64::from(n), &desc.concat());
        }
        self.write(AVAIL + 4 + 2 * u64::from(self.requests % 16), &0_u16.to_le_bytes());
        self.requests += 1;
        self.write(AVAIL + 2, &self.requests.to_le_bytes());
        self.kick.write(1).expect("a kick");
        let end = Instant::now() + Duration::from_secs(20);
        while u16::from_le_bytes(self.read(USED + 2)) != self.requests {
            assert!(Instant::now() < end, "the request is done in time");
            std::thread::sleep(Duration::from_millis(1));
        }
        while self.call.read().is_err() {
            assert!(Instant::now() < end, "the device calls");
            std::thread::sleep(Duration::from_millis(1));
        }
        self.read::<1>(STATUS)[0]
    }

    /// Announces the memory and starts ring 0.
    fn start(&self, front: &mut Frontend) {
        let region = VhostUserMemoryRegionInfo {
            guest_phys_addr: 0,
            memory_size: MEMORY,
            userspace_addr: USER,
            mmap_offset: 0,
            mmap_handle: self.memory.as_raw_fd(),
        };
        front.set_mem_table(&[region]).expect("SET_MEM_TABLE");
        front.set_vring_num(0, 16).expect("SET_VRING_NUM");
        let addrs = VringConfigData {
            queue_max_size: 16,
            queue_size: 16,
            flags: 0,
            desc_table_addr: USER,
            used_ring_addr: USER + USED,
            avail_ring_addr: USER + AVAIL,
            log_addr: None,
        };
        front.set_vring_addr(0, &addrs).expect("SET_VRING_ADDR");
        front.set_vring_base(0, 0).expect("SET_VRING_BASE");
        front.set_vring_call(0, &self.call).expect("SET_VRING_CALL");
        front.set_vring_kick(0, &self.kick).expect("SET_VRING_KICK");
        front.set_vring_enable(0, true).expect("SET_VRING_ENABLE");
    }
}

/// Connects when the daemon listens.
fn connect(socket: &Path) -> Frontend {
    let end = Instant::now() + Duration::from_secs(20);
    loop {
        match UnixStream::connect(socket) {
            Ok(stream) => return Frontend::from_stream(stream, 2),
            Err(error) => assert!(Instant::now() < end, "{error}"),
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_stock_daemon_serves_the_device() {
    let dir = tempfile::tempdir().expect("a directory");
    let (path, socket) = (dir.path().join("disk"), dir.path().join("socket"));
    let file = File::create(&path).expect("a file");
    file.set_len(1 << 20).expect("a sparse file");
    let (their_path, their_socket) = (path.clone(), socket.clone());
    let embedder = std::thread::spawn(move || serve(&their_path, &their_socket));

    let mut front = connect(&socket);
    front.set_owner().expect("SET_OWNER");
    let offered = front.get_features().expect("GET_FEATURES");
    assert_eq!(offered & WANTED, WANTED);
    let protocol = front.get_protocol_features().expect("GET_PROTOCOL_FEATURES");
    let wanted = VhostUserProtocolFeatures::MQ | VhostUserProtocolFeatures::CONFIG;
    assert!(protocol.contains(wanted));
    front.set_protocol_features(wanted).expect("SET_PROTOCOL_FEATURES");
    front.set_features(WANTED).expect("SET_FEATURES");
    assert_eq!(front.get_queue_num().expect("GET_QUEUE_NUM"), 2);
    let config = front.get_config(0, 8, VhostUserConfigFlags::empty(), &[0; 8]).expect("GET_CONFIG").1;
    assert_eq!(config, 2048_u64.to_le_bytes(), "the capacity in sectors");

    let mut guest = Guest::new();
    guest.start(&mut front);
    guest.write(DATA, &[0x5a; 512]);
    assert_eq!(guest.request(1, 7), 0, "a write");
    guest.write(DATA, &[0; 512]);
    assert_eq!(guest.request(0, 7), 0, "a read");
    assert_eq!(guest.read::<512>(DATA), [0x5a; 512]);
    let mut on_disk = [0; 512];
    File::open(&path).and_then(|file| file.read_exact_at(&mut on_disk, 7 * 512)).expect("the disk");
    assert_eq!(on_disk, [0x5a; 512]);
    assert_eq!(guest.request(8, 0), 0, "who the disk is");
    assert_eq!(guest.read::<9>(DATA), *b"embedded\0");
    assert_eq!(guest.request(0, 2048), 1, "past the end");
    assert_eq!(front.get_vring_base(0).expect("GET_VRING_BASE"), 4);

    drop(front);
    embedder.join().expect("the daemon ends with its connection");
}
