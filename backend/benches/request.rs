//! How long a request takes without any I/O: chain, bios, request, an engine that answers at once, completion, used ring.
//!
//! `cargo bench -p sluice-backend` says it in nanoseconds for each batch, and as requests a second ("thrpt"). For what does
//! not depend on the machine's mood, see the example `requests` and `scripts/instructions.sh`.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};

use driver::{Driver, KINDS};

mod driver;

/// How many requests are made available at a time.
const BATCHES: [u16; 2] = [1, 32];

fn requests(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("request");
    for kind in KINDS {
        for batch in BATCHES {
            let mut driver = Driver::new(kind);
            driver.check(kind);
            group.throughput(Throughput::Elements(batch.into()));
            group.bench_function(BenchmarkId::new(kind.name, batch), |bencher| {
                bencher.iter(|| driver.run(batch));
            });
        }
    }
    group.finish();
}

criterion_group!(benches, requests);
criterion_main!(benches);
