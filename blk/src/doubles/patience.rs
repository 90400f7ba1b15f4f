//! A limit for tests that would otherwise wait for ever when they fail.

use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

/// Runs `test` on a thread of its own and panics if it is not done in a minute.
pub(crate) fn in_time(test: impl FnOnce() + Send + 'static) {
    let (done, wait) = channel();
    let thread = std::thread::spawn(move || {
        test();
        let _ = done.send(());
    });
    match wait.recv_timeout(Duration::from_secs(60)) {
        Err(RecvTimeoutError::Timeout) => panic!("it hangs"),
        Ok(()) | Err(RecvTimeoutError::Disconnected) => {
            if let Err(panic) = thread.join() {
                std::panic::resume_unwind(panic);
            }
        }
    }
}
