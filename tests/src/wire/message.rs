//! Messages that any front-end might send: any code, payloads that are mostly of the right form with values that matter,
//! and fds of all kinds.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::Arc;

use vhost::vhost_user::message::FrontendReq;

use crate::driver::Ring;
use crate::frontend::NEED_REPLY;
use crate::memory::{Region, memory_file};
use crate::rng::Choose;

/// A message as it goes over the wire, with the fds that go with it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// Which.
    pub code: u32,
    /// Version and flags.
    pub flags: u32,
    /// The length that the header has.
    pub size: u32,
    /// The payload.
    pub body: Vec<u8>,
    /// Which of the [`Pool`]'s fds go with it.
    pub fds: Vec<usize>,
}

/// Fds of all kinds.
#[derive(Debug)]
pub struct Pool {
    fds: Vec<OwnedFd>,
}

/// What a front-end knows that is right: numbers for payloads.
#[derive(Clone, Debug, Default)]
pub struct Known {
    /// Guest address, size, user address, offset in the file: of a region that can be mapped, with its fd's number.
    pub regions: Vec<[u64; 4]>,
    /// User addresses of the parts of a ring that works.
    pub ring: [u64; 3],
    /// Features that were offered.
    pub features: u64,
}

impl Known {
    /// What is known of a guest's memory and ring.
    pub fn new(regions: &[Region], ring: &Ring, features: u64) -> Self {
        let memory = ring.memory();
        Known {
            regions: regions.iter().map(|r| [r.guest_addr, r.size, r.user_addr, r.file_offset]).collect(),
            ring: [ring.desc, ring.used, ring.avail].map(|addr| memory.user_addr(addr)),
            features,
        }
    }
}

impl Pool {
    /// Event fds that count and that block, memory, pipes with and without another end, files, a directory, a socket.
    pub fn new(regions: &[Region]) -> Self {
        let clone = |file: &Arc<File>| OwnedFd::from(file.try_clone().expect("a file can be cloned"));
        let event = |flags| rustix::event::eventfd(0, flags).expect("an eventfd can be made");
        let mut fds: Vec<OwnedFd> = regions.iter().map(|region| clone(&region.file)).collect();
        for flags in [rustix::event::EventfdFlags::empty(), rustix::event::EventfdFlags::NONBLOCK] {
            fds.push(event(flags));
        }
        let full = event(rustix::event::EventfdFlags::empty());
        rustix::io::write(&full, &(u64::MAX - 1).to_ne_bytes()).expect("a counter takes its most");
        fds.push(full);
        fds.push(clone(&memory_file(4096)));
        fds.push(clone(&memory_file(0)));
        let (reader, writer) = rustix::pipe::pipe().expect("a pipe can be made");
        fds.extend([reader, writer]);
        // Nobody reads from this one, and nobody writes to that one.
        fds.push(rustix::pipe::pipe().expect("a pipe can be made").1);
        fds.push(rustix::pipe::pipe().expect("a pipe can be made").0);
        for (path, write) in
            [("/dev/null", true), ("/dev/zero", true), ("/proc/self/exe", false), ("/", false)]
        {
            let file = File::options().read(true).write(write).open(path);
            fds.push(file.unwrap_or_else(|e| panic!("{path}: {e}")).into());
        }
        fds.push(UnixStream::pair().expect("sockets can be made").0.into());
        Pool { fds }
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.fds.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.fds.is_empty()
    }

    /// The fds with these numbers.
    pub fn some(&self, numbers: &[usize]) -> Vec<BorrowedFd<'_>> {
        numbers.iter().map(|&number| self.fds[number % self.fds.len()].as_fd()).collect()
    }
}

/// Makes a message. What is right is taken from `known`; `fds` is how many there are to choose from.
pub fn message(choose: &mut impl Choose, known: &Known, fds: usize) -> Message {
    let code = code(choose);
    let (body, count) = payload(choose, known, code);
    let mut message = Message {
        code,
        flags: 1 | if choose.one_in(3) { 0 } else { NEED_REPLY },
        size: u32::try_from(body.len()).expect("a message is short"),
        body,
        fds: (0..count).map(|_| choose.below(fds)).collect(),
    };
    if choose.one_in(12) {
        spoil(&mut message, choose, fds);
    }
    message
}

/// Makes a message of a migration: about the log of what is written or the device's state, or one that such a log matters to. Apart from [`message`], so that what
/// choices have made there goes on to be the same.
pub fn log_message(choose: &mut impl Choose, known: &Known, fds: usize) -> Message {
    const LOG_ALL: u64 = 1 << 26;
    let log_addr = choose.pick(&[0, 4096, 1 << 20, 1 << 32, 1 << 40, u64::MAX - 8, u64::MAX]);
    let (code, body, count) = match choose.below(10) {
        0 => (FrontendReq::SET_PROTOCOL_FEATURES, 0x8_920b_u64.to_le_bytes().to_vec(), 0),
        8 => {
            let numbers = [choose.pick(&[0u32, 1, 1, 2]), choose.pick(&[0u32, 0, 0, 1])];
            (FrontendReq::SET_DEVICE_STATE_FD, numbers.map(u32::to_le_bytes).concat(), 1)
        }
        9 => (FrontendReq::CHECK_DEVICE_STATE, vec![], 0),
        1 => (FrontendReq::SET_FEATURES, (known.features | LOG_ALL).to_le_bytes().to_vec(), 0),
        2 => (FrontendReq::SET_FEATURES, (known.features & !LOG_ALL).to_le_bytes().to_vec(), 0),
        3 | 4 => {
            let [desc, used, avail] = known.ring;
            let addrs = [desc, used, avail, log_addr].map(u64::to_le_bytes).concat();
            (FrontendReq::SET_VRING_ADDR, [[0, 0, 0, 0, 1, 0, 0, 0].to_vec(), addrs].concat(), 0)
        }
        5 => (FrontendReq::SET_LOG_FD, vec![], 1),
        _ => {
            // What the default layout of memory needs is some 130 KiB.
            let size = choose.pick(&[0, 1, 4096, 0x2_0100, 1 << 18, 1 << 22, 1 << 45, u64::MAX]);
            let offset = choose.pick(&[0, 0, 0, 4096, 1, u64::MAX - 4095]);
            (FrontendReq::SET_LOG_BASE, [size, offset].map(u64::to_le_bytes).concat(), 1)
        }
    };
    let mut message = Message {
        code: code.into(),
        flags: 1 | if choose.one_in(3) { 0 } else { NEED_REPLY },
        size: u32::try_from(body.len()).expect("a message is short"),
        body,
        // The first are the guest's memory: a log may be in there as well as anywhere.
        fds: (0..count).map(|_| if choose.one_in(3) { choose.below(fds) } else { choose.below(3) }).collect(),
    };
    if choose.one_in(12) {
        spoil(&mut message, choose, fds);
    }
    message
}

/// Mostly what is served; sometimes what is not, or nothing that there is.
fn code(choose: &mut impl Choose) -> u32 {
    const SERVED: [FrontendReq; 24] = [
        FrontendReq::GET_FEATURES,
        FrontendReq::SET_FEATURES,
        FrontendReq::SET_OWNER,
        FrontendReq::RESET_OWNER,
        FrontendReq::SET_MEM_TABLE,
        FrontendReq::SET_VRING_NUM,
        FrontendReq::SET_VRING_ADDR,
        FrontendReq::SET_VRING_BASE,
        FrontendReq::GET_VRING_BASE,
        FrontendReq::SET_VRING_KICK,
        FrontendReq::SET_VRING_CALL,
        FrontendReq::SET_VRING_ERR,
        FrontendReq::GET_PROTOCOL_FEATURES,
        FrontendReq::SET_PROTOCOL_FEATURES,
        FrontendReq::GET_QUEUE_NUM,
        FrontendReq::SET_VRING_ENABLE,
        FrontendReq::GET_CONFIG,
        FrontendReq::SET_CONFIG,
        FrontendReq::RESET_DEVICE,
        FrontendReq::GET_MAX_MEM_SLOTS,
        FrontendReq::ADD_MEM_REG,
        FrontendReq::REM_MEM_REG,
        FrontendReq::GET_INFLIGHT_FD,
        FrontendReq::SET_INFLIGHT_FD,
    ];
    if choose.one_in(12) {
        let wild = choose.any_u64();
        let low = choose.below_u32(50);
        return choose.pick(&[low, low, low, u32::try_from(wild >> 32).expect("32 bits"), 0]);
    }
    choose.pick(&SERVED).into()
}

/// A payload for a code, and how many fds belong to it.
fn payload(choose: &mut impl Choose, known: &Known, code: u32) -> (Vec<u8>, usize) {
    let index = choose.pick(&[0u32, 0, 0, 0, 0, 1, 2, 255, 256, u32::MAX]);
    let pair = |a: u32, b: u32| [a.to_le_bytes(), b.to_le_bytes()].concat();
    match FrontendReq::try_from(code) {
        Ok(FrontendReq::SET_FEATURES) => {
            let bit = 1u64 << choose.below(64);
            let features =
                choose.pick(&[known.features, known.features, known.features & !bit, bit, 0, u64::MAX]);
            (features.to_le_bytes().to_vec(), 0)
        }
        Ok(FrontendReq::SET_PROTOCOL_FEATURES) => {
            let bits = choose.any_u64() & 0xffff;
            let all = choose.any_u64();
            (choose.pick(&[0x9209, 0x9209, 0x8209, bits, 0, 8, all]).to_le_bytes().to_vec(), 0)
        }
        Ok(FrontendReq::SET_MEM_TABLE) => mem_table(choose, known),
        Ok(FrontendReq::ADD_MEM_REG | FrontendReq::REM_MEM_REG) => {
            let body = [&[0; 8][..], &region(choose, known)].concat();
            (body, usize::from(code == u32::from(FrontendReq::ADD_MEM_REG)))
        }
        Ok(FrontendReq::SET_VRING_NUM) => {
            let num = choose.pick(&[128, 128, 8, 256, 0, 3, 32_768, 65_536, u32::MAX]);
            (pair(index, num), 0)
        }
        Ok(FrontendReq::SET_VRING_BASE) => {
            (pair(index, choose.pick(&[0, 0, 7, 0xffff, 0x1_0000, u32::MAX])), 0)
        }
        Ok(FrontendReq::GET_VRING_BASE) => (pair(index, 0), 0),
        Ok(FrontendReq::SET_VRING_ENABLE) => (pair(index, choose.pick(&[1, 1, 0, 2, u32::MAX])), 0),
        Ok(FrontendReq::SET_VRING_ADDR) => {
            let mut body = pair(index, choose.pick(&[0, 0, 0, 1, u32::MAX]));
            for right in known.ring {
                let any = choose.any_u64();
                body.extend(
                    choose.pick(&[right, right, right, right, right + 1, right + 4096, 0, any]).to_le_bytes(),
                );
            }
            body.extend([0; 8]);
            (body, 0)
        }
        Ok(FrontendReq::SET_VRING_KICK | FrontendReq::SET_VRING_CALL | FrontendReq::SET_VRING_ERR) => {
            let none = choose.one_in(6);
            let body = u64::from(index) | if none { 0x100 } else { 0 };
            (body.to_le_bytes().to_vec(), usize::from(!none))
        }
        Ok(FrontendReq::GET_INFLIGHT_FD | FrontendReq::SET_INFLIGHT_FD) => {
            let sizes = [
                choose.pick(&[1 << 20, 1 << 14, 4096, 0, u64::MAX]),
                choose.pick(&[0, 0, 4096, 1, u64::MAX]),
            ];
            let counts =
                [choose.pick(&[1u16, 2, 2, 0, u16::MAX]), choose.pick(&[128u16, 128, 256, 0, 3, u16::MAX])];
            let mut body = sizes.map(u64::to_le_bytes).concat();
            body.extend(counts.map(u16::to_le_bytes).concat());
            (body, usize::from(code == u32::from(FrontendReq::SET_INFLIGHT_FD)))
        }
        Ok(FrontendReq::GET_CONFIG | FrontendReq::SET_CONFIG) => {
            let len = choose.pick(&[60u32, 60, 1, 1, 4, 8, 256, 0]);
            let offset = choose.pick(&[0u32, 0, 32, 8, 0x100, 0xff, u32::MAX]);
            let told = choose.pick(&[len, len, len, len, len + 1, u32::MAX]);
            let value = u8::try_from(choose.below(4)).expect("less than four");
            let mut body = [offset, told, choose.pick(&[0, 0, 1, 2])].map(u32::to_le_bytes).concat();
            body.resize(12 + usize::try_from(len).expect("u32 fits usize"), value);
            (body, 0)
        }
        _ => {
            let len = choose.pick(&[0, 0, 0, 8, 8, 40, 100]);
            ((0..len).map(|_| u8::try_from(choose.below(256)).expect("less than 256")).collect(), 0)
        }
    }
}

fn mem_table(choose: &mut impl Choose, known: &Known) -> (Vec<u8>, usize) {
    // As a good front-end says it; then the fds of the pool that were chosen must be those of the regions.
    let count = choose.pick(&[known.regions.len(), 1, 1, 2, 0, 8, 32]);
    let told = u32::try_from(count).expect("a few");
    let told = choose.pick(&[told, told, told, told, told + 1, 0, u32::MAX]);
    let mut body = [told, 0].map(u32::to_le_bytes).concat();
    for _ in 0..count {
        body.extend(region(choose, known));
    }
    (body, if choose.one_in(8) { choose.below(40) } else { count })
}

/// Guest address, size, user address, offset.
fn region(choose: &mut impl Choose, known: &Known) -> Vec<u8> {
    let mut fields = choose.pick(&known.regions);
    if choose.one_in(3) {
        let at = choose.below(fields.len());
        let any = choose.any_u64();
        fields[at] = choose.pick(&[0, 1, 4096, 1 << 20, 1 << 47, 1 << 63, u64::MAX, u64::MAX - 4095, any]);
    }
    fields.iter().flat_map(|field| field.to_le_bytes()).collect()
}

/// Spoils the frame of a message.
fn spoil(message: &mut Message, choose: &mut impl Choose, fds: usize) {
    let any = choose.below_u32(64);
    match choose.below(6) {
        0 => message.flags = choose.pick(&[0, 2, 3, 5, 13, u32::MAX, any]),
        1 => {
            message.size =
                choose.pick(&[0, message.size + 1, message.size.saturating_sub(1), 4096, 4097, u32::MAX])
        }
        2 => message.body.truncate(choose.below(message.body.len() + 1)),
        3 => {
            let count = choose.pick(&[1, 1, 2, 8, 33, 60]);
            message.fds = (0..count).map(|_| choose.below(fds)).collect();
        }
        4 => message.fds.clear(),
        _ => {
            if !message.body.is_empty() {
                let at = choose.below(message.body.len());
                message.body[at] ^= 1 << choose.below(8);
            }
        }
    }
}

impl Message {
    /// Header and payload.
    pub fn to_bytes(&self) -> Vec<u8> {
        let header = [self.code, self.flags, self.size].map(u32::to_le_bytes).concat();
        [header, self.body.clone()].concat()
    }

    /// Whether the header tells of more than there is: then a back-end waits for the rest.
    pub fn is_cut(&self) -> bool {
        usize::try_from(self.size).is_ok_and(|size| size > self.body.len())
    }
}
