//! The parser against a model, over random chains and over the rows of what a hostile guest does.

mod model;
mod plan;
mod rows;

use sluice_blk::queue::{PassthroughCommand, QueueConfig, RequestQueue};

use self::model::{Desc, Model, Outcome, Part};
use super::*;
use crate::device::Device;
use crate::doubles::disk::TestDisk;
use crate::doubles::guest_ram::GuestRam;
use crate::vring::RingSetup;

/// The regions of the guest's memory: two that are neighbours, one past a hole, many small neighbours, a large one, and
/// one at the end of the addresses.
fn regions() -> Vec<std::ops::Range<u64>> {
    let mut all = vec![0x1_0000..0x9_0000, 0x9_0000..0xa_0000, HOLE.end..HOLE.end + 0x1_0000, LARGE, TOP];
    all.extend((0..64).map(|page| MANY + page * 0x1000..MANY + (page + 1) * 0x1000));
    all
}

const HOLE: std::ops::Range<u64> = 0xa_0000..0x10_0000;
const MANY: u64 = 0x20_0000;
const LARGE: std::ops::Range<u64> = 0x1000_0000..0x1040_0000;
const TOP: std::ops::Range<u64> = 0xffff_ffff_fffe_0000..0xffff_ffff_ffff_f000;

const TABLE: u64 = 0x1_0000;
const AVAIL: u64 = 0x1_8000;
const USED: u64 = 0x1_c000;

/// A ring with its parser, the disk behind it, and the model of both.
struct Bench {
    ram: GuestRam,
    pin: MemPin,
    vring: Vring,
    parser: ChainParser,
    queue: RequestQueue,
    device: std::sync::Arc<Device>,
    /// How many chains were seen to be plain transfers.
    transfers: u32,
    _disk: TestDisk,
}

/// What a bench is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Made {
    size: u16,
    indirect: bool,
    read_only: bool,
    sectors: u64,
    block: u32,
}

impl Default for Made {
    fn default() -> Self {
        Self { size: 16, indirect: true, read_only: false, sectors: 4096, block: 512 }
    }
}

impl Bench {
    fn new(made: Made) -> Self {
        let disk = TestDisk::new(made.sectors).with(|options| {
            options.read_only = made.read_only;
            options.logical_block_size = Some(made.block);
        });
        let device = disk.device(1);
        let engine = device.disk().engine(RequestQueue::tags(made.size), None).expect("the sync engine");
        let config = QueueConfig::new(made.size, *device.disk().limits());
        let ram = GuestRam::new(&regions());
        let setup = RingSetup {
            size: made.size,
            desc: TABLE,
            avail: AVAIL,
            used: USED,
            indirect: made.indirect,
            in_order: false,
            ..RingSetup::default()
        };
        let pin = ram.pin();
        Self {
            vring: Vring::start(&setup, &pin, None).expect("a good ring"),
            parser: ChainParser::new(made.size),
            queue: RequestQueue::new(config, engine).expect("address space"),
            ram,
            pin,
            device,
            transfers: 0,
            _disk: disk,
        }
    }

    fn model(&self) -> Model<'_> {
        let disk = self.device.disk();
        Model {
            ram: &self.ram,
            table: TABLE,
            size: self.vring.size(),
            indirect: self.vring.has_indirect(),
            read_only: disk.is_read_only(),
            writethrough: self.device.config().is_writethrough(),
            sectors: disk.capacity().0,
            block: disk.limits().logical_block_size.into(),
        }
    }

    /// Puts descriptors into a table.
    fn put(&self, table: u64, descs: &[Desc]) {
        let bytes: Vec<u8> = descs.iter().flat_map(|desc| desc.bytes()).collect();
        self.ram.write(table, &bytes);
    }

    /// Parses the chain at `head`, and checks it against the model. `None` is a fault.
    fn check(&mut self, head: u16) -> Option<Outcome> {
        let expected = self.model().outcome(head);
        let (bios, pages) = (self.queue.bios().available(), self.queue.arena().used_pages());
        if let Some(ParsedChain { status, action }) = self.transfer(head) {
            self.transfers += 1;
            let (place, expected) = expected.as_ref().expect("a fault is due, not a transfer");
            assert_eq!(&self.take(action), expected);
            self.check_status(&status, *place);
        }
        let config = self.device.config();
        let parsed = self.parser.parse(&self.vring, head, &self.pin, config, &mut self.queue);
        let Ok(ParsedChain { status, action }) = parsed else {
            assert_eq!(expected, None, "{parsed:?}");
            return None;
        };
        let outcome = self.take(action);
        let (place, expected) = expected.unwrap_or_else(|| panic!("a fault is due, not {outcome:x?}"));
        assert_eq!(outcome, expected);
        self.check_status(&status, place);
        let left = (self.queue.bios().available(), self.queue.arena().used_pages());
        assert_eq!(left, (bios, pages), "bios and pages that did not come back");
        Some(outcome)
    }

    /// The chain at `head`, if it is a plain transfer.
    fn transfer(&mut self, head: u16) -> Option<ParsedChain> {
        let config = self.device.config();
        let transfer = self.parser.transfer(&self.vring, head, &self.pin, config, &mut self.queue);
        transfer.map(|Transfer { status, bio }| ParsedChain { status, action: Action::Submit(bio.into()) })
    }

    fn take(&mut self, action: Action) -> Outcome {
        match action {
            Action::Answer(status) => Outcome::Answer(status),
            Action::Submit(chain) => Outcome::Submit(self.parts(chain)),
            Action::Passthrough(chain, PassthroughCommand::DeviceId) => Outcome::DeviceId(self.parts(chain)),
            Action::Passthrough(_, command) => panic!("{command:?} was not offered"),
        }
    }

    fn parts(&mut self, chain: BioChain) -> Vec<Part> {
        let piece = |piece: &sluice_mem::sglist::IoVec| (piece.as_ptr().addr(), piece.len());
        let part = |bio: &sluice_blk::bio::Bio| Part {
            op: bio.op,
            offset: bio.range.offset(),
            len: bio.range.len(),
            pieces: bio.sg.pieces().iter().map(piece).collect(),
        };
        let parts = chain.iter().map(part).collect();
        self.queue.bios().put_chain(chain);
        parts
    }

    /// The status byte is the one at `place`, and was not touched.
    fn check_status(&self, status: &GuestSlice, place: u64) {
        assert_eq!(status.len(), 1);
        let before = self.ram.read(place, 1)[0];
        status.write(0, !before);
        assert_eq!(self.ram.read(place, 1)[0], !before, "the status goes to {place:#x}");
        status.write(0, before);
    }
}
