//! Many Services: how fast they are written, that they are read back as they are, and what a full map says.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use rustix::time::{ClockId, clock_gettime};
use terway::kernel::bpf::load::Object;
use terway::kernel::bpf::map::Map;
use terway::kernel::bpf::pin::{self, Age};
use terway::kernel::bpf::services::Services;
use terway::maps::{Backend, Frontend, FrontendKey, NODE_OWN, Proto, Sizes, Tables, Write};

use super::maps::BpfFs;
use crate::vm::without_bpf;

const SERVICES: u32 = 10_000;
const EACH: u32 = 5;

fn service(n: u32) -> FrontendKey {
    let addr = IpAddr::V4(Ipv4Addr::from(0x0a60_0000 + n));
    FrontendKey { addr, port: 80, proto: Proto::Tcp }
}

/// 10,000 Services of five backends, as the table writes them: what is pointed to comes before what points there.
fn many() -> (Vec<Write>, Tables) {
    let mut tables = Tables::default();
    for n in 0..SERVICES {
        let (set, base) = (n + 1, n * EACH + 1);
        let value = Frontend { set, base, count: EACH, affinity: 0, flags: 0 };
        tables.frontends.push((service(n), value));
        for id in base..base + EACH {
            let addr = IpAddr::V4(Ipv4Addr::from(0xac10_0000 + id));
            tables.backends.push((id, Backend { set, addr, port: 8080, proto: Proto::Tcp }));
            tables.slots.push((id, id));
        }
    }
    for n in 0..1000u32 {
        let addr = IpAddr::V4(Ipv4Addr::from(0xc000_0000 + n));
        tables.nodes.push((addr, if n == 7 { NODE_OWN } else { 0 }));
    }
    let backends = tables.backends.iter().map(|(id, b)| Write::Backend { id: *id, value: Some(*b) });
    let slots = tables.slots.iter().map(|(at, backend)| Write::Slot { at: *at, backend: *backend });
    let frontends = tables.frontends.iter().map(|(key, value)| Write::Frontend { key: *key, value: *value });
    let nodes = tables.nodes.iter().map(|(addr, flags)| Write::Node { addr: *addr, flags: *flags });
    (backends.chain(slots).chain(frontends).chain(nodes).collect(), tables)
}

/// What this thread has had of a CPU: other tests run beside it.
fn used() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn sorted(mut tables: Tables) -> Tables {
    tables.frontends.sort_by_key(|(key, _)| *key);
    tables.slots.sort_unstable();
    tables.backends.sort_by_key(|(id, _)| *id);
    tables.nodes.sort_unstable();
    tables
}

#[test]
fn ten_thousand_services_are_written_in_no_time_and_read_back_by_who_comes_next() {
    let fs = BpfFs::new("load");
    let (services, age) = Services::open(fs.path(), &Sizes::default()).unwrap();
    assert_eq!(age, Age::New);
    let (writes, tables) = many();
    let begin = used();
    services.write(&writes).unwrap();
    let written = used() - begin;
    drop(services);
    let (services, age) = Services::open(fs.path(), &Sizes::default()).unwrap();
    assert_eq!(age, Age::Old);
    let begin = Instant::now();
    let found = services.read().unwrap();
    println!("{} writes in {written:?}, read back in {:?}", writes.len(), begin.elapsed());
    assert!(sorted(found) == sorted(tables), "what is read is what was written");
    assert!(written < Duration::from_secs(3), "{written:?}");
    // Away with half of them.
    let mut gone = Vec::new();
    for n in 0..SERVICES / 2 {
        gone.push(Write::RemoveFrontend(service(n)));
    }
    gone.push(Write::RemoveNode("192.0.0.7".parse().unwrap()));
    gone.extend((1..=SERVICES * EACH / 2).map(|id| Write::Backend { id, value: None }));
    services.write(&gone).unwrap();
    services.write(&gone).unwrap();
    let left = services.read().unwrap();
    assert_eq!((left.frontends.len(), left.backends.len(), left.nodes.len()), (5000, 25_000, 999));
}

#[test]
fn without_batches_elements_are_written_and_read_one_by_one() {
    const BATCHES: &[u64] = &[24, 25, 26, 27];
    let fs = BpfFs::new("single");
    let (writes, tables) = many();
    without_bpf::run_without(BATCHES, libc::EINVAL, || {
        let (services, _) = Services::open(fs.path(), &Sizes::default()).unwrap();
        let begin = Instant::now();
        services.write(&writes).unwrap();
        println!("{} writes one by one in {:?}", writes.len(), begin.elapsed());
        assert!(sorted(services.read().unwrap()) == sorted(tables));
        let beyond = [Write::Slot { at: 1, backend: 1 }, Write::Slot { at: 262_144, backend: 1 }];
        assert_eq!(services.write(&beyond).unwrap_err().0, 1);
    });
}

#[test]
fn a_program_that_the_kernel_refuses_is_refused_in_the_verifiers_words() {
    const KEEP: [u8; 8] = [0xbf, 0x16, 0, 0, 0, 0, 0, 0];
    let whole = include_bytes!(concat!(env!("OUT_DIR"), "/sock.o"));
    let fs = BpfFs::new("refused");
    let folder = pin::folder(fs.path(), "terway").unwrap();
    let sound = Object::parse("sound", whole).unwrap();
    let maps: Vec<Map> = sound.maps().iter().map(|(name, shape)| pin::fresh(&folder, name, shape).unwrap()).collect();
    // One that keeps its context in r6 copies what nobody has written there instead; elsewhere r9 may be something.
    let broken = whole.chunks(8).enumerate().filter(|(_, instruction)| *instruction == KEEP).map(|(at, _)| {
        let mut object = whole.to_vec();
        object[8 * at + 1] = 0x96;
        object
    });
    let refusals = |object: Vec<u8>| -> Vec<String> {
        let object = Object::parse("broken", &object).unwrap();
        let linked = object.link(&maps).unwrap();
        linked.programs().filter_map(|name| linked.load(name).err()).map(|e| e.to_string()).collect()
    };
    let refused = broken.map(refusals).find(|refused| !refused.is_empty()).unwrap_or_default();
    assert_eq!(refused.len(), 1, "{refused:?}");
    let words = "the verifier says [";
    assert!(refused[0].starts_with("load eBPF program terway_") && refused[0].contains(words), "{}", refused[0]);
    assert!(refused[0].contains("R9 !read_ok"), "{}", refused[0]);
}

#[test]
fn other_sizes_mean_other_maps_and_the_old_ones_serve_until_then() {
    let fs = BpfFs::new("sizes");
    let small = Sizes { frontends: 10, backends: 20, slots: 40, nodes: 10, affinity: 100, flows: 100 };
    let (services, _) = Services::open(fs.path(), &small).unwrap();
    let value = Frontend { set: 1, base: 1, count: 0, affinity: 0, flags: 0 };
    let writes: Vec<Write> = (0..20).map(|n| Write::Frontend { key: service(n), value }).collect();
    let (done, e) = services.write(&writes).unwrap_err();
    assert_eq!((done, e.to_string().as_str()), (10, "eBPF map frontends is full: it holds 10 entries"));
    assert_eq!(services.read().unwrap().frontends.len(), 10, "those that were there go on");
    let beyond = [Write::Backend { id: 20, value: None }];
    assert_eq!(services.write(&beyond).unwrap_err().1.to_string(), "eBPF map backends is full: it holds 20 entries");
    // What is replaced needs no room.
    services.write(&[Write::Frontend { key: service(3), value: Frontend { set: 9, ..value } }]).unwrap();
    assert_eq!(services.sizes(), small);
    let larger = Sizes { frontends: 100, ..small };
    let (bigger, age) = Services::open(fs.path(), &larger).unwrap();
    assert_eq!((age, bigger.sizes(), bigger.read().unwrap().frontends.len()), (Age::New, larger, 0));
    assert_eq!(services.read().unwrap().frontends.len(), 10);
    // Cut off in the middle of making them: none counts.
    std::fs::remove_file(bigger.folder().join("state")).unwrap();
    assert_eq!(Services::open(fs.path(), &larger).unwrap().1, Age::New);
}
