//! scratch
use kvik_kernels::ThreadPool;
use kvik_kv::KvStore;
use kvik_model::{layers::*, *};
use std::time::Instant;
fn main() {
    let a: Vec<String> = std::env::args().collect();
    let n: usize = a[2].parse().unwrap();
    let threads: usize = a[3].parse().unwrap();
    let pool = ThreadPool::new(threads);
    let t = Instant::now();
    let ck = Checkpoint::open(a[1].as_ref()).unwrap();
    println!("open {:?}", t.elapsed());
    let m = Model::load(&ck, &pool, None).unwrap();
    println!("load {:?} rss peak {:?}", t.elapsed(), kvik_memory::counters::peak_resident_bytes());
    let mut store = KvStore::new(m.kv_shape().clone(), 1, n + 200, 512).unwrap();
    let mut ws = m.workspace(threads, n + 200);
    let mut c = store.sequence();
    let ids: Vec<u32> = (0..n as u32).map(|i| 100 + (i * 7919) % 20000).collect();
    for r in 0..3 {
        c.truncate(&mut store, 0);
        let t = Instant::now();
        for ch in ids.chunks(512) {
            m.forward(
                &pool,
                &mut ws,
                &mut store,
                &mut [Span { cache: &mut c, tokens: ch, logits: Logits::Last }],
            )
            .unwrap();
        }
        let e = t.elapsed().as_secs_f64();
        println!("run {r} prefill {n}: {:.0} tok/s", n as f64 / e);
        let k = 64;
        let t = Instant::now();
        for i in 0..k {
            let tok = [100 + i as u32];
            m.forward(
                &pool,
                &mut ws,
                &mut store,
                &mut [Span { cache: &mut c, tokens: &tok, logits: Logits::Last }],
            )
            .unwrap();
        }
        println!("decode at {n}: {:.0} tok/s", k as f64 / t.elapsed().as_secs_f64());
    }
    println!("rss peak {:?} MB", kvik_memory::counters::peak_resident_bytes().unwrap() >> 20);
}
