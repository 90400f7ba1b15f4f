//! What a ring has in flight, read back from memory that a front-end kept: whatever is there, a ring goes on with heads that
//! it has, each once, or nothing is changed. And what a daemon leaves there, its successor finds.

use std::fs::File;
use std::os::unix::fs::FileExt;

use rustix::fs::{MemfdFlags, memfd_create};
use sluice_backend::inflight::{Inflight, InflightInfo, InflightMem};
use sluice_mem::sigbus::Alarm;
use sluice_tests::rng::Choose;

use crate::chains::device;
use crate::choices::Choices;

/// The most steps in the life of a ring.
const STEPS: usize = 200;

/// A region with anything in it, a life after that, and a death.
pub fn run(bytes: &[u8]) {
    let mut choose = Choices::new(bytes);
    let (size, used_idx) = (choose.pick(&[1, 2, 8, 8, 64]), choose.pick(&[0, 0, 0xffff, 7]));
    let queue_size = choose.pick(&[size, size, size, 1, 64, 1024]);
    let device = device(false, 512);
    let need = (16 + 16 * u64::from(queue_size)).next_multiple_of(64);
    let info = InflightInfo { size: need, offset: 0, num_queues: 1, queue_size };
    let file = File::from(memfd_create("kept", MemfdFlags::CLOEXEC).expect("memory"));
    file.set_len(need).expect("memory");
    file.write_all_at(&region(&mut choose, size, queue_size), 0).expect("memory");
    let before = content(&file, need);
    let alarm = Alarm::new().expect("an event fd");
    let kept = file.try_clone().expect("a file can be cloned");
    let memory = InflightMem::open(info, kept, &device, &alarm).expect("a region that is large enough");
    let setup = memory.queue(0).expect("the only queue");
    let Ok((inflight, resumed)) = Inflight::start(&setup, size, used_idx) else {
        assert_eq!(content(&file, need), before, "a region that was refused has changed");
        return;
    };
    let mut ring = Ring { inflight, size, used_idx, taken: resumed.heads, put: vec![] };
    ring.check();
    ring.live(&mut choose);
    let Ring { taken, used_idx, .. } = ring;
    let (_, resumed) = Inflight::start(&setup, size, used_idx).expect("what we left is what we can read");
    assert_eq!(resumed.heads, taken, "what the successor finds");
}

/// What is in flight, as a list.
struct Ring {
    inflight: Inflight,
    size: u16,
    used_idx: u16,
    /// In the order in which they were taken.
    taken: Vec<u16>,
    /// Those of them that were put into the used ring and not shown.
    put: Vec<u16>,
}

impl Ring {
    fn check(&self) {
        let mut heads = self.taken.clone();
        heads.sort_unstable();
        heads.dedup();
        assert_eq!(heads.len(), self.taken.len(), "a head twice: {:?}", self.taken);
        assert!(heads.iter().all(|head| *head < self.size), "a head that there is not: {:?}", self.taken);
    }

    /// Takes, puts and shows, and dies somewhere.
    fn live(&mut self, choose: &mut Choices<'_>) {
        for _ in 0..STEPS {
            if choose.is_over() {
                return;
            }
            let head = choose.below_u16(self.size);
            let is_taken = self.taken.contains(&head);
            match choose.below(3) {
                0 if !is_taken => {
                    self.inflight.take(head);
                    self.taken.push(head);
                }
                1 if is_taken && !self.put.contains(&head) => {
                    self.inflight.put(head);
                    self.put.push(head);
                }
                2 => {
                    let count = u16::try_from(self.put.len()).expect("a ring is small");
                    self.used_idx = self.used_idx.wrapping_add(count);
                    self.inflight.publish(self.used_idx);
                    let put = std::mem::take(&mut self.put);
                    self.taken.retain(|head| !put.contains(head));
                }
                _ => {}
            }
        }
    }
}

/// A region of mostly the right form.
fn region(choose: &mut Choices<'_>, size: u16, queue_size: u16) -> Vec<u8> {
    let any = choose.below_u16(u16::MAX);
    let mut region = vec![0; 8];
    let version = choose.pick(&[1, 1, 1, 0, any]);
    let heads = choose.pick(&[size, size, size, queue_size, any]);
    let (last, used_idx) = (choose.below_u16(size + 1), choose.pick(&[0, 1, 2, 0xfffe, any]));
    region.extend([version, heads, last, used_idx].map(u16::to_le_bytes).concat());
    for head in 0..queue_size {
        let (inflight, next) = (choose.pick(&[0, 0, 1, 0xff]), choose.below_u16(size + 2));
        let counter = choose.pick(&[u64::from(head), u64::from(head), 0, 1, 1 << 40]);
        region.extend([inflight, 0, 0, 0, 0, 0]);
        region.extend(next.to_le_bytes());
        region.extend(counter.to_le_bytes());
    }
    region
}

fn content(file: &File, len: u64) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(len).expect("a small region")];
    file.read_exact_at(&mut bytes, 0).expect("memory");
    bytes
}
