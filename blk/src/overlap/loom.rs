//! Two queues that write to the same blocks: never both at a time, and whoever waits is woken.

use std::sync::atomic::Ordering;

use ::loom::sync::Notify;
use ::loom::sync::atomic::AtomicBool;
use ::loom::thread;

use super::*;

/// The thread of a queue: it sleeps until it is woken.
struct Thread(Notify);

impl std::fmt::Debug for Thread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Thread")
    }
}

impl Wake for Thread {
    fn wake(&self) {
        self.0.notify();
    }
}

/// Writes a part of a block, for which the block has to be this writer's alone.
fn write(overlaps: &Overlaps, writing: &AtomicBool) {
    let thread = Arc::new(Thread(Notify::new()));
    let writer = overlaps.register(1, Arc::clone(&thread) as Arc<dyn Wake>);
    let held = loop {
        if let Some(held) = overlaps.try_take(writer, 0, 4096, Access::Exclusive) {
            break held;
        }
        thread.0.wait();
    };
    assert!(!writing.swap(true, Ordering::Relaxed), "two write to a block at the same time");
    writing.store(false, Ordering::Relaxed);
    overlaps.put(writer, held);
    overlaps.unregister(writer);
}

#[test]
fn loom_two_writers_of_a_block_take_turns_and_none_is_left_asleep() {
    ::loom::model(|| {
        let shared = Arc::new((Overlaps::default(), AtomicBool::new(false)));
        let other = Arc::clone(&shared);
        let thread = thread::spawn(move || write(&other.0, &other.1));
        write(&shared.0, &shared.1);
        thread.join().unwrap();
    });
}
