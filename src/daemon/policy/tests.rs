//! The loop with a renderer that writes down what it is asked, and an API server that is ourselves.

use std::fs;
use std::sync::Mutex;

use serde_json::{Value, json};
use smol::channel::{Receiver as Told, unbounded};

use super::*;
use crate::error::Error;
use crate::netpol::Document;
use crate::peer::Namespace;
use crate::rules::Rules;
use feed::Wish;

/// What the kernel would hold, and what it was asked.
#[derive(Default)]
struct Book {
    rules: Rules,
    pods: Pods,
    asked: Vec<&'static str>,
    broken: Option<&'static str>,
    unheld: Vec<Name>,
}

struct Recorder(Arc<Mutex<Book>>);

impl Renderer for Recorder {
    fn restore(&mut self, rules: &Rules, pods: &Pods) -> Result<(), Error> {
        let mut book = self.0.lock().unwrap();
        book.asked.push("restore");
        (book.rules, book.pods) = (rules.clone(), pods.clone());
        book.broken.map_or(Ok(()), |why| Err(Error::refused(why)))
    }

    fn apply(&mut self, writes: &[Write], after: &Rules, pods: &Pods) -> Result<(), Error> {
        let mut book = self.0.lock().unwrap();
        book.asked.push("apply");
        writes.iter().for_each(|write| book.rules.apply(write));
        assert_eq!(book.rules, *after, "the changes lead to what holds then");
        book.pods = pods.clone();
        book.broken.map_or(Ok(()), |why| Err(Error::refused(why)))
    }

    fn unheld(&self) -> Option<(Vec<Name>, Error)> {
        let unheld = self.0.lock().unwrap().unheld.clone();
        (!unheld.is_empty()).then(|| (unheld, Error::refused("no bpffs")))
    }
}

struct Bench {
    it: Loop,
    book: Arc<Mutex<Book>>,
    told: Told<Input>,
    now: Instant,
    _news: Receiver<News>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.it.note);
    }
}

impl Bench {
    fn new() -> Bench {
        let (mut bench, begin) = Bench::before();
        bench.it.hear(begin, bench.now);
        bench
    }

    /// Of a node that is not ready for rules, and what says that it is.
    fn before() -> (Bench, News) {
        let book = Arc::<Mutex<Book>>::default();
        let (inputs, told) = unbounded();
        let (news, arriving) = channel();
        let kernel = book.clone();
        let open = move || {
            let renderer = Box::new(Recorder(kernel.clone()));
            Ok(Some(Chosen {
                way: PolicyRenderer::Ebpf,
                why: "a test".into(),
                taken: BTreeSet::new(),
                room: Sizes::default(),
                renderer,
            }))
        };
        let node = BTreeSet::from(["192.168.0.1".parse().unwrap()]);
        let note = std::env::temp_dir().join(format!("tw{}-{:?}", std::process::id(), std::thread::current().id()));
        let it = Loop::new(Start { kube: None, node_name: "n1".into(), inputs, note }, news);
        (Bench { it, book, told, now: Instant::now(), _news: arriving }, News::Begin { node, open: Box::new(open) })
    }

    fn turn(&mut self) {
        self.it.turn(self.now);
    }

    fn pass(&mut self, time: Duration) {
        self.now += time;
        self.turn();
    }

    fn hear(&mut self, news: News) {
        self.it.hear(news, self.now);
        self.turn();
    }

    fn own(&mut self, pods: &[Value]) {
        self.hear(News::Own(Heard::All(pods.iter().map(|pod| serde_json::from_value(pod.clone()).unwrap()).collect())));
    }

    /// What is needed and has not been told of, by its words.
    fn lacks(&self) -> Vec<String> {
        self.it.watches.show().filter(|(_, answered)| !answered).map(|(what, _)| what).collect()
    }

    /// Answers the watch that these words are the words of.
    fn answer(&mut self, what: &str, things: Vec<Thing>) {
        let (wish, by) = self.it.watches.find(what);
        self.hear(News::Heard { by, kind: wish.kind, heard: Heard::All(things) });
    }

    fn answer_all(&mut self) {
        while let Some(what) = self.lacks().first().cloned() {
            let things = match what.strip_prefix("namespaces named ") {
                Some(name) => vec![namespace(name)],
                None => Vec::new(),
            };
            self.answer(&what, things);
        }
    }

    fn place(&mut self, name: &str, seat: u16) {
        let placed = Placed::new(seat, [format!("10.0.0.{seat}").parse().unwrap()]);
        self.hear(News::Placed { name: name.into(), placed, is_bare: false });
    }

    /// What the node's loop was told of pods and seats since the last time.
    fn admitted(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(input) = self.told.try_recv() {
            if let Input::Admitted { pods, seats, result } = input {
                all.extend(pods.iter().map(|pod| match &result {
                    Ok(()) => pod.to_string(),
                    Err(why) => format!("{pod}: {why}"),
                }));
                all.extend(seats.iter().map(|seat| format!("seat {seat}")));
            }
        }
        all
    }

    fn events(&mut self) -> Vec<String> {
        let mut all = Vec::new();
        while let Ok(input) = self.told.try_recv() {
            if let Input::Tell(event) = input {
                all.push(
                    event.create().path().to_owned()
                        + " "
                        + &serde_json::to_value(&*event).unwrap()["message"].to_string(),
                );
            }
        }
        all
    }

    fn asked(&self) -> Vec<&'static str> {
        std::mem::take(&mut self.book.lock().unwrap().asked)
    }

    fn allows(&self, pod: &str, from: &str) -> bool {
        let packet = crate::rules::Packet { protocol: 6, ports: Some((40_000, 80)) };
        let book = self.book.lock().unwrap();
        let answer = book.rules.answer(pod, crate::rules::Direction::Ingress, from.parse().unwrap(), &packet);
        answer.expect("a pod of ours").allow
    }
}

#[test]
fn all_is_asked_before_the_node_is_ready_and_nothing_is_written() {
    let (mut bench, begin) = Bench::before();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.place("shop/web", 1);
    bench.answer_all();
    assert!(bench.it.watches.is_complete());
    assert!(bench.asked().is_empty() && bench.admitted().is_empty());
    bench.hear(begin);
    assert_eq!(bench.asked(), ["restore"]);
    assert_eq!(bench.admitted(), ["shop/web"]);
    assert!(bench.allows("shop/web", "10.0.0.9"));
}

#[test]
fn who_enforces_after_all_writes_nothing_before_the_node_has_seated_its_pods_for_it() {
    let (mut bench, begin) = Bench::before();
    let mut first = Some(Error::refused("no bpffs"));
    let open = move || first.take().map_or(Ok(None), Err);
    bench.hear(News::Begin { node: BTreeSet::new(), open: Box::new(open) });
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.place("shop/web", 0);
    bench.answer_all();
    assert_eq!(bench.admitted(), ["shop/web: network policies cannot be enforced: no bpffs"]);
    bench.place("shop/web", 0);
    bench.admitted();
    bench.it.retry = Some(bench.now);
    bench.turn();
    // The node has it by now.
    bench.pass(RETRY.1 * 2);
    bench.place("shop/web", 0);
    assert_eq!((bench.asked().len(), bench.admitted().len()), (0, 0));
    assert_eq!(bench.it.lack().unwrap(), "no bpffs");
    bench.place("shop/web", 1);
    bench.hear(begin);
    assert_eq!((bench.asked(), bench.admitted()), (vec!["restore"], vec!["shop/web".into()]));
    assert_eq!((bench.book.lock().unwrap().pods["shop/web"].seat, bench.it.lack()), (1, None));
}

fn pod(namespace: &str, name: &str, version: u32, app: &str) -> Value {
    json!({
        "metadata": {"namespace": namespace, "name": name, "resourceVersion": version.to_string(), "labels": {"app": app}},
        "spec": {"nodeName": "n1"},
    })
}

fn namespace(name: &str) -> Thing {
    let meta = json!({"name": name, "resourceVersion": "1", "labels": {"kubernetes.io/metadata.name": name}});
    Thing::Namespace(serde_json::from_value::<Namespace>(json!({"metadata": meta})).unwrap())
}

fn allow_from(name: &str, from: Value) -> Thing {
    let spec = json!({"podSelector": {}, "policyTypes": ["Ingress"], "ingress": [{"from": [from]}]});
    let body = json!({"metadata": {"namespace": "shop", "name": name, "resourceVersion": "5"}, "spec": spec});
    Thing::Document(serde_json::from_value::<Document>(body).unwrap())
}

fn remote(name: &str, app: &str, ip: &str) -> Thing {
    let meta = json!({"namespace": "shop", "name": name, "resourceVersion": "7", "labels": {"app": app}});
    let pod = json!({"metadata": meta, "spec": {"nodeName": "n2"}, "status": {"podIP": ip}});
    Thing::Pod(serde_json::from_value(pod).unwrap())
}

#[test]
fn nothing_is_written_and_nobody_admitted_before_all_that_is_needed_is_known() {
    let mut bench = Bench::new();
    bench.place("shop/web", 1);
    bench.answer_all();
    assert!(bench.it.lack().unwrap().contains("the pods of this node"), "{:?}", bench.it.lack());
    bench.own(&[pod("shop", "web", 1, "web")]);
    let lacks =
        ["network policies of namespace shop", "network policies of Calico of namespace shop", "namespaces named shop"];
    assert_eq!(bench.lacks(), lacks);
    assert_eq!(
        bench.it.lack().unwrap(),
        "network policies of namespace shop have not been heard of from the API server"
    );
    // A policy that is told of first asks for more, and that is waited for as well.
    bench.answer(lacks[0], vec![allow_from("db", json!({"podSelector": {"matchLabels": {"app": "db"}}}))]);
    bench.answer(lacks[1], Vec::new());
    bench.answer(lacks[2], vec![namespace("shop")]);
    assert_eq!(bench.lacks(), ["pods of namespace shop with app=db"]);
    bench.pass(HOLD * 2);
    assert_eq!((bench.asked().len(), bench.admitted().len()), (0, 0));
    bench.answer("pods of namespace shop with app=db", vec![remote("db-0", "db", "10.0.9.9")]);
    assert_eq!((bench.asked(), bench.admitted()), (vec!["restore"], vec!["shop/web".into()]));
    assert!(bench.allows("shop/web", "10.0.9.9") && !bench.allows("shop/web", "10.0.9.8"));
    assert_eq!(bench.it.lack(), None);
}

#[test]
fn many_who_ask_why_at_once_are_answered_in_their_order() {
    use crate::rpc::{End, Reply, Request, Why};
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web"), pod("shop", "db", 2, "db")]);
    bench.answer_all();
    bench.place("shop/web", 1);
    bench.place("shop/db", 2);
    let end = |ip: &str| End::Address(ip.parse().unwrap());
    let why = |src: &str, dst: &str| Why { src: end(src), dst: end(dst), protocol: 6, ports: Some((40_000, 80)) };
    // Of the second the two ends have no family in common.
    let all = vec![why("10.0.9.9", "10.0.0.2"), why("10.0.9.9", "fd00::1"), why("10.0.0.1", "10.0.9.9")];
    let Reply::Show(said) = bench.it.answer(Request::Whys(all)) else { panic!("no answer") };
    let names: Vec<_> = (0..3).map(|i| (said[i]["src_pod"].as_str(), said[i]["dst_pod"].as_str())).collect();
    assert_eq!(names, [(None, Some("shop/db")), (None, None), (Some("shop/web"), None)]);
}

#[test]
fn a_pod_is_admitted_once_its_rules_are_there_and_its_seat_is_free_once_they_are_gone() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.answer_all();
    assert_eq!(bench.asked(), ["restore"]);
    bench.place("shop/web", 1);
    assert_eq!((bench.asked(), bench.admitted()), (vec!["apply"], vec!["shop/web".into()]));
    assert_eq!(bench.book.lock().unwrap().pods["shop/web"].seat, 1);
    // The same again is answered from what is there.
    bench.place("shop/web", 1);
    assert_eq!((bench.asked().len(), bench.admitted()), (0, vec!["shop/web".into()]));
    // One that nobody has told of waits until somebody does.
    bench.place("shop/new", 2);
    assert_eq!(bench.admitted(), [""; 0]);
    bench.asked();
    bench.hear(News::Asked(Box::new(serde_json::from_value(pod("shop", "new", 3, "web")).unwrap())));
    assert_eq!((bench.asked(), bench.admitted()), (vec!["apply"], vec!["shop/new".into()]));
    // The watch's list is older, and does not take it away.
    bench.own(&[pod("shop", "web", 1, "web")]);
    assert!(bench.it.model.rules().pods.contains_key("shop/new"));
    bench.hear(News::Left("shop/new".into()));
    assert_eq!(bench.admitted(), ["seat 2"]);
    assert!(!bench.book.lock().unwrap().pods.contains_key("shop/new"));
    assert!(!bench.it.model.rules().pods.contains_key("shop/new"));
}

#[test]
fn a_pod_that_was_asked_for_and_never_had_a_place_is_forgotten_when_it_goes() {
    let mut bench = Bench::new();
    bench.own(&[]);
    bench.hear(News::Asked(Box::new(serde_json::from_value(pod("shop", "lost", 3, "web")).unwrap())));
    let seen = serde_json::from_value(pod("shop", "lost", 4, "web")).unwrap();
    bench.hear(News::Own(Heard::One(seen)));
    assert_eq!(bench.it.shelf.count(Kind::Pods), 1);
    bench.hear(News::Own(Heard::Gone("shop/lost".into())));
    assert_eq!((bench.it.shelf.count(Kind::Pods), bench.it.model.rules().pods.len()), (0, 0));
}

#[test]
fn a_change_that_needs_more_waits_for_it_but_not_for_ever() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.place("shop/web", 1);
    bench.answer_all();
    bench.asked();
    bench.admitted();
    let policy = |name| allow_from(name, json!({"podSelector": {"matchLabels": {"app": name}}}));
    bench.answer("network policies of namespace shop", vec![policy("db")]);
    assert_eq!((bench.asked().len(), bench.allows("shop/web", "10.0.9.9")), (0, true));
    bench.answer("pods of namespace shop with app=db", vec![remote("db-0", "db", "10.0.9.9")]);
    assert_eq!((bench.asked(), bench.allows("shop/web", "10.0.9.8")), (vec!["apply"], false));
    // A server that does not answer keeps no policy away.
    bench.answer("network policies of namespace shop", vec![policy("x")]);
    bench.pass(HOLD - Duration::from_millis(1));
    assert_eq!((bench.asked().len(), bench.allows("shop/web", "10.0.9.9")), (0, true));
    bench.pass(Duration::from_millis(1));
    assert_eq!((bench.asked(), bench.allows("shop/web", "10.0.9.9")), (vec!["apply"], false));
    // And pods that come wait on.
    bench.own(&[pod("shop", "web", 1, "web"), pod("shop", "new", 9, "web")]);
    bench.place("shop/new", 2);
    assert_eq!(bench.admitted(), [""; 0]);
    bench.answer("pods of namespace shop with app=x", Vec::new());
    assert_eq!(bench.admitted(), ["shop/new"]);
}

#[test]
fn a_pod_that_runs_without_programs_is_told_of_once_a_policy_is_about_it() {
    let mut bench = Bench::new();
    let placed = Placed::new(1, ["10.0.0.1".parse().unwrap()]);
    bench.hear(News::Placed { name: "shop/web".into(), placed, is_bare: true });
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.answer_all();
    assert_eq!((bench.asked(), bench.admitted().len()), (vec!["restore"], 0));
    assert_eq!(bench.book.lock().unwrap().pods["shop/web"].seat, 1);
    bench.answer(
        "network policies of namespace shop",
        vec![allow_from("any", json!({"ipBlock": {"cidr": "10.0.0.0/8"}}))],
    );
    assert_eq!(bench.admitted(), ["shop/web"]);
    bench.answer("network policies of namespace shop", Vec::new());
    assert_eq!(bench.admitted(), [""; 0]);
}

#[test]
fn a_watch_ends_some_time_after_nobody_needs_it() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.answer_all();
    bench.answer(
        "network policies of namespace shop",
        vec![allow_from("db", json!({"podSelector": {"matchLabels": {"app": "db"}}}))],
    );
    bench.answer("pods of namespace shop with app=db", vec![remote("db-0", "db", "10.0.9.9")]);
    // Another policy asks for all pods: what has been told of stays until they have been.
    bench.answer("network policies of namespace shop", vec![allow_from("db", json!({"podSelector": {}}))]);
    bench.pass(Duration::from_secs(60));
    assert!(bench.allows("shop/web", "10.0.9.9"));
    bench.answer("pods of namespace shop", vec![remote("db-0", "db", "10.0.9.9")]);
    bench.pass(Duration::from_secs(60));
    assert!(bench.allows("shop/web", "10.0.9.9"));
    let open = |bench: &Bench| bench.it.watches.show().map(|(what, _)| what).collect::<Vec<_>>();
    assert!(!open(&bench).contains(&"pods of namespace shop with app=db".to_owned()), "{:?}", open(&bench));
    let before = bench.it.watches.begun();
    bench.answer("network policies of namespace shop", Vec::new());
    bench.pass(Duration::from_secs(1));
    bench.answer("network policies of namespace shop", vec![allow_from("db", json!({"podSelector": {}}))]);
    bench.pass(Duration::from_secs(60));
    assert_eq!(bench.it.watches.begun(), before, "who is needed again soon has never gone");
    bench.own(&[]);
    bench.pass(Duration::from_secs(60));
    assert_eq!(open(&bench).len(), 3, "{:?}", open(&bench));
}

#[test]
fn of_many_selectors_what_is_known_holds_until_one_watch_of_all_has_answered() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.answer_all();
    let app = |i: usize| format!("app{i}");
    let of = |i: usize| allow_from(&app(i), json!({"podSelector": {"matchLabels": {"app": app(i)}}}));
    let all: Vec<Thing> = (0..17).map(of).collect();
    bench.answer("network policies of namespace shop", all[..16].to_vec());
    for i in 0..16 {
        bench.answer(
            &format!("pods of namespace shop with app={}", app(i)),
            vec![remote(&app(i), &app(i), &format!("10.0.9.{i}"))],
        );
    }
    bench.answer("network policies of namespace shop", all.clone());
    bench.pass(Duration::from_secs(60));
    let open = |bench: &Bench| bench.it.watches.show().filter(|(what, _)| what.starts_with("pods")).count();
    assert!(open(&bench) == 17 && bench.allows("shop/web", "10.0.9.3") && !bench.allows("shop/web", "10.0.9.16"));
    let every = (0..17).map(|i| remote(&app(i), &app(i), &format!("10.0.9.{i}"))).collect();
    bench.answer("pods of namespace shop", every);
    bench.pass(Duration::from_secs(60));
    assert_eq!(open(&bench), 1);
    assert!(
        (0..17).all(|i| bench.allows("shop/web", &format!("10.0.9.{i}"))) && !bench.allows("shop/web", "10.0.9.17")
    );
    // And back.
    bench.answer("network policies of namespace shop", all[..16].to_vec());
    bench.pass(Duration::from_secs(60));
    assert!(open(&bench) == 17 && bench.allows("shop/web", "10.0.9.3"));
}

#[test]
fn what_an_ended_watch_still_tells_is_not_kept() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.answer_all();
    let policies = "network policies of namespace shop";
    bench.answer(policies, vec![allow_from("db", json!({"podSelector": {"matchLabels": {"app": "db"}}}))]);
    let db = "pods of namespace shop with app=db";
    bench.answer(db, vec![remote("db-0", "db", "10.0.9.9")]);
    let (Wish { kind, .. }, by) = bench.it.watches.find(db);
    let late = |app: &str| News::Heard { by, kind, heard: Heard::One(remote("db-1", app, "10.0.9.8")) };
    bench.hear(late("db"));
    assert!(bench.allows("shop/web", "10.0.9.8"));
    // Its thread has sent one more by the time that it is ended.
    bench.answer(policies, Vec::new());
    bench.pass(Duration::from_secs(60));
    let before = bench.it.shelf.count(Kind::Pods);
    bench.hear(late("db"));
    assert_eq!(bench.it.shelf.count(Kind::Pods), before);
    bench.answer(policies, vec![allow_from("any", json!({"podSelector": {"matchLabels": {"app": "db"}}}))]);
    bench.answer(db, Vec::new());
    assert!(!bench.allows("shop/web", "10.0.9.8"), "nobody has such a pod any more");
}

#[test]
fn kinds_that_the_server_does_not_have_are_empty_and_looked_for_again() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web"), pod("bank", "web", 1, "web")]);
    let calico = |space: &str| format!("network policies of Calico of namespace {space}");
    let (_, by) = bench.it.watches.find(&calico("shop"));
    bench.hear(News::Absent { by });
    bench.answer_all();
    assert_eq!(bench.asked(), ["restore"]);
    let open = |bench: &Bench| bench.it.watches.show().filter(|(what, _)| what.contains("Calico of namespace")).count();
    assert_eq!(open(&bench), 0);
    bench.pass(Duration::from_secs(11));
    assert_eq!((open(&bench), bench.it.lack()), (1, None), "one looks, and nobody waits for it");
    let (_, by) = bench.it.watches.find(&calico("bank"));
    bench.hear(News::Absent { by });
    bench.pass(Duration::from_secs(11));
    assert_eq!(open(&bench), 0, "less often each time");
    bench.pass(Duration::from_secs(10));
    bench.answer(&calico("bank"), Vec::new());
    assert_eq!(bench.lacks(), [calico("shop")]);
}

#[test]
fn what_a_kind_has_said_holds_until_the_server_says_twice_that_there_is_none() {
    let calico = "network policies of Calico of namespace shop";
    let deny = || {
        let spec = json!({"selector": "all()", "types": ["Ingress"]});
        let body = json!({"metadata": {"namespace": "shop", "name": "deny", "resourceVersion": "5"}, "spec": spec});
        vec![Thing::Document(serde_json::from_value::<Document>(body).unwrap())]
    };
    for is_back in [true, false] {
        let mut bench = Bench::new();
        bench.own(&[pod("shop", "web", 1, "web")]);
        bench.answer_all();
        bench.answer(calico, deny());
        assert!(!bench.allows("shop/web", "10.0.9.9"));
        let (_, by) = bench.it.watches.find(calico);
        bench.hear(News::Absent { by });
        assert!(!bench.allows("shop/web", "10.0.9.9"), "a server that starts may say so");
        bench.pass(Duration::from_secs(11));
        let (_, by) = bench.it.watches.find(calico);
        if is_back {
            bench.answer(calico, deny());
            assert!(!bench.allows("shop/web", "10.0.9.9"));
            bench.answer(calico, Vec::new());
        } else {
            bench.hear(News::Absent { by });
        }
        assert!(bench.allows("shop/web", "10.0.9.9"), "is back: {is_back}");
    }
}

#[test]
fn a_watch_whose_word_holds_although_it_is_over_is_heard_to_its_end() {
    let calico = |space: &str| format!("network policies of Calico of namespace {space}");
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web"), pod("bank", "web", 1, "web")]);
    bench.answer_all();
    let spec = json!({"selector": "all()", "types": ["Ingress"]});
    let deny = json!({"metadata": {"namespace": "shop", "name": "deny", "resourceVersion": "5"}, "spec": spec});
    bench.answer(&calico("shop"), vec![Thing::Document(serde_json::from_value::<Document>(deny).unwrap())]);
    let (Wish { kind, .. }, shop) = bench.it.watches.find(&calico("shop"));
    let (_, bank) = bench.it.watches.find(&calico("bank"));
    bench.hear(News::Absent { by: bank });
    assert!(!bench.allows("shop/web", "10.0.9.9"));
    bench.hear(News::Heard { by: shop, kind, heard: Heard::Gone("shop/deny".into()) });
    assert!(bench.allows("shop/web", "10.0.9.9"));
}

#[test]
fn what_the_kernel_refuses_refuses_pods_and_is_tried_again() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.answer_all();
    bench.asked();
    bench.events();
    bench.book.lock().unwrap().broken = Some("the map of prefixes is full");
    bench.place("shop/web", 1);
    assert_eq!(bench.admitted(), ["shop/web: network policies cannot be enforced: the map of prefixes is full"]);
    bench.place("shop/web", 1);
    let said = bench.events();
    assert_eq!(said.len(), 0, "it was told with the first, which `admitted` has read: {said:?}");
    assert_eq!(bench.asked(), ["apply"]);
    bench.it.retry = Some(bench.now);
    bench.turn();
    assert_eq!((bench.asked(), bench.events().len()), (vec!["restore"], 0), "told once");
    bench.book.lock().unwrap().broken = None;
    bench.it.retry = Some(bench.now);
    bench.place("shop/web", 1);
    assert_eq!((bench.asked(), bench.admitted()), (vec!["restore"], vec!["shop/web".into()]));
}

#[test]
fn a_retry_that_cannot_be_made_yet_does_not_keep_the_loop_busy() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.book.lock().unwrap().broken = Some("the map of prefixes is full");
    bench.answer_all();
    assert!(bench.it.retry.is_some());
    // Meanwhile a policy names pods that nobody has asked for.
    bench.answer(
        "network policies of namespace shop",
        vec![allow_from("db", json!({"podSelector": {"matchLabels": {"app": "db"}}}))],
    );
    bench.it.show = None;
    bench.it.count = bench.now + Duration::from_secs(3600);
    bench.pass(Duration::from_secs(60));
    assert!(bench.it.due() > bench.now, "nothing is due that cannot be done");
    bench.book.lock().unwrap().broken = None;
    bench.asked();
    bench.answer("pods of namespace shop with app=db", Vec::new());
    assert_eq!(bench.asked(), ["restore"]);
}

#[test]
fn a_namespace_whose_policies_may_not_be_read_keeps_its_own_new_pods_out_and_no_others() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web"), pod("bank", "web", 1, "web")]);
    let (_, by) = bench.it.watches.find("network policies of namespace bank");
    bench.answer("network policies of Calico of namespace bank", Vec::new());
    while let Some(what) = bench.lacks().into_iter().find(|what| !what.contains("bank")) {
        bench.answer(&what, Vec::new());
    }
    bench.answer("namespaces named bank", vec![namespace("bank")]);
    bench.place("shop/web", 1);
    let trouble = |is_forbidden| News::Trouble { by, why: "403".into(), is_forbidden };
    bench.hear(trouble(false));
    assert_eq!((bench.asked().len(), bench.admitted().len()), (0, 0), "a server that is ill may answer yet");
    bench.hear(trouble(true));
    assert_eq!((bench.asked(), bench.admitted()), (vec!["restore"], vec!["shop/web".into()]));
    bench.place("bank/web", 2);
    bench.place("shop/web", 1);
    assert_eq!(bench.admitted(), ["shop/web"]);
    assert!(bench.it.lack().unwrap().contains("network policies of namespace bank"), "{:?}", bench.it.lack());
    bench.answer("network policies of namespace bank", Vec::new());
    assert_eq!((bench.admitted(), bench.it.lack()), (vec!["bank/web".into()], None));
}

#[test]
fn a_right_that_is_taken_away_keeps_new_pods_out_and_changes_nothing_for_others() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web"), pod("shop", "new", 1, "web"), pod("bank", "web", 1, "web")]);
    bench.place("shop/web", 1);
    bench.answer_all();
    bench.answer(
        "network policies of namespace shop",
        vec![allow_from("own", json!({"ipBlock": {"cidr": "10.0.0.0/24"}}))],
    );
    bench.asked();
    bench.admitted();
    let (_, by) = bench.it.watches.find("network policies of namespace shop");
    bench.hear(News::Trouble { by, why: "403".into(), is_forbidden: true });
    bench.place("shop/new", 2);
    bench.place("bank/web", 3);
    assert_eq!(bench.admitted(), ["bank/web"]);
    assert!(!bench.allows("shop/web", "10.0.9.9") && !bench.asked().contains(&"restore"));
    bench.answer("network policies of namespace shop", Vec::new());
    assert_eq!((bench.admitted(), bench.allows("shop/web", "10.0.9.9")), (vec!["shop/new".into()], true));
}

#[test]
fn pods_that_run_are_not_opened_because_their_policies_may_not_be_read() {
    let mut bench = Bench::new();
    bench.own(&[pod("bank", "web", 1, "web")]);
    bench.place("bank/web", 1);
    let (_, by) = bench.it.watches.find("network policies of namespace bank");
    while let Some(what) = bench.lacks().into_iter().find(|what| what != "network policies of namespace bank") {
        bench.answer(&what, Vec::new());
    }
    bench.hear(News::Trouble { by, why: "403".into(), is_forbidden: true });
    assert_eq!(bench.asked(), [""; 0], "what an earlier life has left goes on to hold");
    bench.hear(News::Left("bank/web".into()));
    assert_eq!(bench.asked(), ["restore"]);
}

#[test]
fn a_pod_that_alone_cannot_be_held_waits_alone() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web"), pod("shop", "own-eni", 1, "web")]);
    bench.answer_all();
    bench.book.lock().unwrap().unheld = vec!["shop/own-eni".into()];
    bench.place("shop/own-eni", 1);
    bench.place("shop/web", 2);
    assert_eq!(bench.admitted(), ["shop/web"]);
    assert!(bench.it.lack().unwrap().contains("no bpffs"), "{:?}", bench.it.lack());
    bench.asked();
    bench.turn();
    assert_eq!(bench.asked(), [""; 0]);
    // Tried again though nothing changes.
    bench.book.lock().unwrap().unheld.clear();
    bench.pass(RETRY.1 + Duration::from_secs(1));
    assert_eq!((bench.asked(), bench.admitted()), (vec!["apply"], vec!["shop/own-eni".into()]));
    assert_eq!((bench.it.lack(), bench.it.again), (None, None));
}

#[test]
fn what_somebody_else_has_changed_is_written_anew() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.answer_all();
    bench.asked();
    let counted = |is_whole: bool| Counted {
        figures: json!({"drops": 1}),
        damage: (!is_whole).then(|| "ipsets".into()),
        is_stale: false,
    };
    let acts = bench.it.acts;
    bench.hear(News::Counted(counted(true), acts));
    assert_eq!((bench.asked().len(), bench.it.figures["drops"].as_u64()), (0, Some(1)));
    // A look that was begun before the last change saw what was right then.
    bench.hear(News::Counted(counted(false), acts - 1));
    assert_eq!(bench.asked(), [""; 0]);
    bench.events();
    bench.hear(News::Counted(counted(false), acts));
    assert_eq!(bench.asked(), ["restore"]);
    let said = bench.events();
    assert!(said.len() == 1 && said[0].contains("ipsets of network policies were changed"), "{said:?}");
    // What kube-proxy brings is nobody's fault.
    bench.hear(News::Counted(Counted { is_stale: true, ..counted(true) }, bench.it.acts));
    assert_eq!((bench.asked(), bench.events().len()), (vec!["restore"], 0));
    // Nor does it wait for a server that does not answer, or stop after the first try.
    let from_db = allow_from("db", json!({"podSelector": {"matchLabels": {"app": "db"}}}));
    bench.answer("network policies of namespace shop", vec![from_db]);
    assert_eq!((bench.lacks().len(), bench.asked().len()), (1, 0));
    bench.book.lock().unwrap().broken = Some("it is in use");
    bench.hear(News::Counted(counted(false), bench.it.acts));
    assert_eq!(bench.asked(), ["restore"]);
    bench.book.lock().unwrap().broken = None;
    bench.pass(RETRY.0 * 2);
    assert_eq!((bench.asked(), bench.allows("shop/web", "10.0.9.9")), (vec!["restore"], false));
}

#[test]
fn what_is_wrong_with_a_policy_is_told_with_it_once() {
    let mut bench = Bench::new();
    bench.own(&[pod("shop", "web", 1, "web")]);
    bench.answer_all();
    bench.events();
    let wrong = || {
        let body =
            json!({"metadata": {"namespace": "shop", "name": "p", "resourceVersion": "5"}, "spec": {"podSelector": 5}});
        vec![Thing::Document(serde_json::from_value::<Document>(body).unwrap())]
    };
    bench.answer("network policies of namespace shop", wrong());
    let said = bench.events();
    assert_eq!(said.len(), 2, "{said:?}");
    assert!(
        said[0].starts_with("/api/v1/namespaces/shop/events")
            && said[0].contains("networkpolicy shop/p: spec.podSelector"),
        "{said:?}"
    );
    bench.answer("network policies of namespace shop", wrong());
    assert_eq!(bench.events().len(), 0);
    // Whom it selects is closed.
    assert!(!bench.allows("shop/web", "10.0.9.9"));
}
