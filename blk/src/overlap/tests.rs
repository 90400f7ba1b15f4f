//! Who may write, who waits, and who is woken.

use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

#[derive(Debug, Default)]
struct Counted(AtomicUsize);

impl Wake for Counted {
    fn wake(&self) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

fn writers(overlaps: &Overlaps) -> [(Writer, Arc<Counted>); 3] {
    std::array::from_fn(|_| {
        let wake = Arc::new(Counted::default());
        (overlaps.register(8, Arc::clone(&wake) as Arc<dyn Wake>), wake)
    })
}

#[test]
fn whole_blocks_may_overlap_and_parts_may_not() {
    let overlaps = Overlaps::default();
    let [(a, _), (b, _), (c, _)] = writers(&overlaps);
    let by_a = overlaps.try_take(a, 0, 10, Access::Shared).expect("nobody writes");
    let by_b = overlaps.try_take(b, 5, 10, Access::Shared).expect("whole blocks may overlap");
    assert_eq!(overlaps.try_take(c, 9, 1, Access::Exclusive), None);
    overlaps.put(a, by_a);
    assert_eq!(overlaps.try_take(c, 9, 1, Access::Exclusive), None);
    overlaps.put(b, by_b);
    assert!(overlaps.try_take(c, 9, 1, Access::Exclusive).is_some());
    assert_eq!(overlaps.try_take(a, 0, 10, Access::Shared), None);
    assert!(overlaps.try_take(b, 10, 1, Access::Exclusive).is_some(), "neighbours do not overlap");
}

#[test]
fn nobody_overtakes_a_claim_but_where_it_does_not_reach() {
    let overlaps = Overlaps::default();
    let [(a, _), (b, _), (c, _)] = writers(&overlaps);
    let by_a = overlaps.try_take(a, 0, 1, Access::Shared).expect("nobody writes");
    assert_eq!(overlaps.try_take(b, 0, 1, Access::Exclusive), None);
    assert_eq!(overlaps.try_take(c, 0, 2, Access::Shared), None, "it would starve the claim before it");
    overlaps.put(a, by_a);
    assert_eq!(overlaps.try_take(c, 0, 2, Access::Shared), None);
    let by_b = overlaps.try_take(b, 0, 1, Access::Exclusive).expect("its turn");
    overlaps.put(b, by_b);
    assert!(overlaps.try_take(c, 0, 2, Access::Shared).is_some());
}

#[test]
fn who_waits_is_woken_and_who_does_not_is_not() {
    let overlaps = Overlaps::default();
    let [(a, a_woken), (b, b_woken), (c, c_woken)] = writers(&overlaps);
    let by_a = overlaps.try_take(a, 0, 1, Access::Exclusive).expect("nobody writes");
    assert_eq!(overlaps.try_take(b, 0, 1, Access::Shared), None);
    assert!(overlaps.try_take(c, 7, 1, Access::Shared).is_some());
    overlaps.put(a, by_a);
    let woken = [a_woken, b_woken, c_woken].map(|woken| woken.0.load(Ordering::Relaxed));
    assert_eq!(woken, [0, 1, 0]);
}

#[test]
fn a_claim_that_is_replaced_by_another_lets_the_next_one_through() {
    for elsewhere_is_free in [true, false] {
        let overlaps = Overlaps::default();
        let [(a, _), (b, _), (c, c_woken)] = writers(&overlaps);
        let by_a = overlaps.try_take(a, 0, 1, Access::Shared).expect("nobody writes");
        let elsewhere = overlaps.try_take(a, 7, 1, Access::Exclusive).expect("nobody writes");
        assert_eq!(overlaps.try_take(b, 0, 1, Access::Exclusive), None);
        assert_eq!(overlaps.try_take(c, 0, 1, Access::Shared), None);
        if elsewhere_is_free {
            overlaps.put(a, elsewhere);
        }
        assert_eq!(c_woken.0.load(Ordering::Relaxed), 0, "the claim before it is still there");
        assert_eq!(overlaps.try_take(b, 7, 1, Access::Exclusive).is_some(), elsewhere_is_free);
        assert_eq!(c_woken.0.load(Ordering::Relaxed), 1);
        assert!(overlaps.try_take(c, 0, 1, Access::Shared).is_some());
        overlaps.put(a, by_a);
    }
}

#[test]
fn a_queue_waits_for_itself_too_but_need_not_be_woken_by_itself() {
    let overlaps = Overlaps::default();
    let [(a, a_woken), ..] = writers(&overlaps);
    let first = overlaps.try_take(a, 0, 1, Access::Exclusive).expect("nobody writes");
    assert_eq!(overlaps.try_take(a, 0, 1, Access::Exclusive), None);
    overlaps.put(a, first);
    assert_eq!(a_woken.0.load(Ordering::Relaxed), 0);
    assert!(overlaps.try_take(a, 0, 1, Access::Exclusive).is_some());
}

#[test]
fn all_that_queues_may_hold_and_claim_has_room_from_the_start() {
    let overlaps = Overlaps::default();
    let writers = writers(&overlaps).map(|(writer, _)| writer);
    let room = || {
        let inner = overlaps.lock();
        (inner.held.capacity(), inner.claims.capacity())
    };
    let before = room();
    let hold = |writer, start| overlaps.try_take(writer, start, 1, Access::Exclusive).is_some();
    for (writer, first) in writers.into_iter().zip([0, 8, 16]) {
        assert!((first..first + 8).all(|start| hold(writer, start)));
    }
    assert!(writers.into_iter().all(|writer| !hold(writer, 0)));
    assert_eq!(room(), before);
    assert!(before.0 >= 24 && before.1 >= 3);
}

#[test]
fn a_queue_that_leaves_gives_back_what_it_holds() {
    let overlaps = Overlaps::default();
    let [(a, _), (b, b_woken), _] = writers(&overlaps);
    assert!(overlaps.try_take(a, 0, 1, Access::Exclusive).is_some());
    assert_eq!(overlaps.try_take(b, 0, 1, Access::Shared), None);
    overlaps.unregister(a);
    assert_eq!(b_woken.0.load(Ordering::Relaxed), 1);
    assert!(overlaps.try_take(b, 0, 1, Access::Shared).is_some());
}

#[test]
fn a_claim_that_is_dropped_lets_the_next_one_through() {
    let overlaps = Overlaps::default();
    let [(a, _), (b, _), (c, c_woken)] = writers(&overlaps);
    let by_a = overlaps.try_take(a, 0, 1, Access::Shared);
    for leave in [Overlaps::cancel, Overlaps::unregister] {
        assert_eq!(overlaps.try_take(b, 0, 1, Access::Exclusive), None);
        assert_eq!(overlaps.try_take(c, 0, 1, Access::Shared), None);
        let before = c_woken.0.load(Ordering::Relaxed);
        leave(&overlaps, b);
        assert_eq!(c_woken.0.load(Ordering::Relaxed), before + 1);
        let by_c = overlaps.try_take(c, 0, 1, Access::Shared).expect("whole blocks may overlap");
        overlaps.put(c, by_c);
    }
    assert!(by_a.is_some());
}
