//! Devices that can be, and those that cannot.

use sluice_mem::PAGE_SIZE;
use sluice_mem::budget::Charge;
use sluice_mem::gfp::Gfp;

use super::*;
use crate::doubles::disk::TestDisk;

fn options() -> DeviceOptions {
    DeviceOptions { num_queues: 1, queue_size: 128, serial: None, memory_budget: None, in_order: false }
}

fn made(options: &DeviceOptions) -> Result<Device, DeviceError> {
    Device::new(TestDisk::new(64).open(), options)
}

#[test]
fn a_device_has_one_to_256_queues() {
    for num_queues in [1, 2, 255, 256] {
        assert_eq!(
            made(&DeviceOptions { num_queues, ..options() }).expect("possible").num_queues(),
            num_queues
        );
    }
    for num_queues in [0, 257, u16::MAX] {
        let error = made(&DeviceOptions { num_queues, ..options() }).expect_err("impossible");
        assert_eq!(error, DeviceError::NumQueues { num_queues });
    }
}

#[test]
fn a_queue_size_is_a_power_of_two_up_to_1024() {
    for queue_size in 0..=2050 {
        let is_possible = matches!(queue_size, 2 | 4 | 8 | 16 | 32 | 64 | 128 | 256 | 512 | 1024);
        let device = made(&DeviceOptions { queue_size, ..options() });
        assert_eq!(device.err(), (!is_possible).then_some(DeviceError::QueueSize { queue_size }));
    }
}

#[test]
fn a_serial_is_padded_with_zeroes_to_20_bytes_and_the_disks_own_by_default() {
    let id = |serial: &str| {
        made(&DeviceOptions { serial: Some(serial.to_owned()), ..options() }).map(|made| *made.id())
    };
    assert_eq!(id("a 1"), Ok(*b"a 1\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0"));
    assert_eq!(id("12345678901234567890"), Ok(*b"12345678901234567890"));
    for serial in ["", "123456789012345678901", "tab\t", "n\u{f6}", "line\n", "zero\0"] {
        assert_eq!(id(serial), Err(DeviceError::Serial { serial: serial.to_owned() }));
    }
    let disk = TestDisk::new(64);
    let device = Device::new(disk.open(), &options()).expect("possible");
    let text = device.id().iter().copied().take_while(|byte| *byte != 0).collect::<Vec<_>>();
    assert_eq!(text, disk.open().serial().as_bytes());
}

#[test]
fn a_budget_is_enough_for_all_queues_or_refused() {
    let device = |num_queues, memory_budget| made(&DeviceOptions { num_queues, memory_budget, ..options() });
    let default = device(3, None).expect("possible");
    assert_eq!(default.budget().limit(), 3 * QueueMemory::MOST);
    let least = 3 * QueueMemory::LEAST;
    assert_eq!(device(3, Some(least)).expect("possible").budget().limit(), least);
    let error = device(3, Some(least - 1)).expect_err("too little");
    assert_eq!(error, DeviceError::MemoryBudget { budget: least - 1, num_queues: 3, least });
}

/// Charges to a budget, a page at a time, until it is used up; says how much that was.
fn use_up(budget: &Arc<Budget>) -> (Charge, usize) {
    let mut charge = budget.charge(0, Gfp::NOWAIT).expect("nothing is asked for");
    while charge.grow(PAGE_SIZE, Gfp::NOWAIT).is_ok() {}
    let bytes = charge.bytes();
    (charge, bytes)
}

#[test]
fn what_a_queue_needs_for_progress_is_there_however_much_the_others_use() {
    let daemon = Budget::new("daemon's memory", 4 * QueueMemory::LEAST + 10 * PAGE_SIZE);
    let disk = TestDisk::new(64);
    let device = |memory_budget| {
        Device::within(disk.open(), &DeviceOptions { num_queues: 2, memory_budget, ..options() }, &daemon)
    };
    let first = device(None).expect("possible");
    let second = device(Some(2 * QueueMemory::LEAST)).expect("possible");
    let (_busy, used) = use_up(first.queue_budget(0));
    assert_eq!(used, QueueMemory::LEAST + 10 * PAGE_SIZE, "all that nobody needs");
    for queue in [first.queue_budget(1), second.queue_budget(0), second.queue_budget(1)] {
        assert_eq!(use_up(queue).1, QueueMemory::LEAST);
    }
    let error = device(None).expect_err("none is left");
    let (budget, least) = (daemon.limit(), 2 * QueueMemory::LEAST);
    assert_eq!(error, DeviceError::DaemonBudget { budget, num_queues: 2, least });
    drop(second);
    assert!(device(None).is_ok(), "a device that is gone needs nothing");
}

#[test]
fn what_is_offered_is_the_disks_and_the_transports() {
    let device = made(&options()).expect("possible");
    assert_eq!(device.features(), device.config().features() | 1 << 30 | 1 << 26);
}
