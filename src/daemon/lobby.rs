//! Who asks while the daemon starts, and what Kubernetes tells meanwhile.

use std::cell::RefCell;
use std::future::pending;
use std::time::{Duration, Instant};

use smol::channel::{Receiver, Sender};
use smol::future;

use super::clock;
use super::node::Input;
use super::pods::Pods;
use super::reactor::Timer;
use crate::object;
use crate::rpc::{Refusal, Reply, Request};

/// A start takes less than this, if all goes well: whoever wants an address waits for it, instead of asking again and again.
const PATIENCE: Duration = Duration::from_secs(2);
/// Kinds that may not be read are a dozen at most; a start that takes hours keeps no more.
const MOST_TOLD: usize = 64;

/// What has come before the loop could hear it.
#[derive(Default)]
pub struct Lobby(RefCell<Inside>);

#[derive(Default)]
struct Inside {
    /// What keeps the start from succeeding, for those who ask.
    trouble: String,
    /// ADDs that wait for the end of the start, and since when.
    waiting: Vec<(Instant, Request, Sender<Reply>)>,
    heard: Heard,
}

/// What the watches have told.
#[derive(Default)]
pub struct Heard {
    pub pods: Pods,
    /// Our own node object, if it was told of.
    pub own: Option<Option<Box<object::Node>>>,
    /// What people are to be told; who asked for it will not say it again.
    pub told: Vec<object::Event>,
}

impl Lobby {
    /// Receives for as long as the start takes, or until it is to end. An ADD waits a moment; everybody else hears at once that
    /// this is a start.
    pub async fn receive(&self, arriving: &Receiver<Input>) {
        loop {
            let input = future::or(async { Some(arriving.recv().await) }, async {
                self.next_due().await;
                None
            });
            match input.await {
                Some(Ok(Input::End) | Err(_)) => return,
                Some(Ok(input)) => self.take(input),
                None => self.turn_away(PATIENCE),
            }
        }
    }

    async fn next_due(&self) {
        let first = self.0.borrow().waiting.first().map(|(since, ..)| *since + PATIENCE);
        match first {
            Some(due) => Timer::after(due.saturating_duration_since(Instant::now())).await,
            None => pending().await,
        }
    }

    fn take(&self, input: Input) {
        let mut inside = self.0.borrow_mut();
        match input {
            Input::Ask { request: request @ Request::Allocate { .. }, answer } if inside.trouble.is_empty() => {
                inside.waiting.push((Instant::now(), request, answer));
            }
            Input::Ask { answer, .. } => inside.refuse(&answer),
            Input::Pods(known) => inside.heard.pods.take(known, clock::now()),
            Input::OwnNode(node) => inside.heard.own = Some(node),
            Input::Tell(event) if inside.heard.told.len() < MOST_TOLD => inside.heard.told.push(*event),
            // A changed file is read by the next attempt to start.
            _ => {}
        }
    }

    /// An attempt to start has failed: nobody waits any longer.
    pub fn fail(&self, why: String) {
        self.0.borrow_mut().trouble = why;
        self.turn_away(Duration::ZERO);
    }

    /// Refuses those who have waited so long.
    fn turn_away(&self, patience: Duration) {
        let mut inside = self.0.borrow_mut();
        let late: Vec<_> = inside.waiting.extract_if(.., |(since, ..)| since.elapsed() >= patience).collect();
        late.iter().for_each(|(_, _, answer)| inside.refuse(answer));
    }

    /// Whoever still waits, to be asked of the loop, and what it shall know.
    pub fn leave(&self) -> (Vec<Input>, Heard) {
        let inside = self.0.take();
        let ask = |(_, request, answer)| Input::Ask { request, answer };
        (inside.waiting.into_iter().map(ask).collect(), inside.heard)
    }
}

impl Inside {
    fn refuse(&self, answer: &Sender<Reply>) {
        let mut reason = String::from("terwayd is starting");
        if !self.trouble.is_empty() {
            reason = format!("{reason}: {}", self.trouble);
        }
        let _ = answer.try_send(Reply::Refused { why: Refusal::Starting, reason });
    }
}

#[cfg(test)]
mod tests {
    use smol::channel::bounded;

    use super::super::reactor::block_on;
    use super::*;
    use crate::pod::PodName;
    use crate::rate::Limits;
    use crate::rpc::{Wish, example_lease};

    fn add() -> (Input, Receiver<Reply>) {
        let (answer, answered) = bounded(1);
        let sandbox = example_lease().sandbox;
        let pod = PodName::new("default", "web-0");
        let request = Request::Allocate { pod, uid: None, sandbox, limits: Limits::default(), wish: Wish::default() };
        (Input::Ask { request, answer }, answered)
    }

    fn reason(reply: Reply) -> String {
        match reply {
            Reply::Refused { why: Refusal::Starting, reason } => reason,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn what_people_are_to_be_told_is_kept() {
        let lobby = Lobby::default();
        let about = object::About::node("n1");
        let event =
            object::Event::new(about, "n1", object::EventType::Warning, "Why", "x", std::time::SystemTime::now());
        (0..2 * MOST_TOLD).for_each(|_| lobby.take(Input::Tell(Box::new(event.clone()))));
        assert_eq!(lobby.leave().1.told.len(), MOST_TOLD);
    }

    #[test]
    fn an_add_waits_for_the_end_of_a_start_that_goes_well() {
        let lobby = Lobby::default();
        let (input, answered) = add();
        lobby.take(input);
        let (answer, status) = bounded(1);
        lobby.take(Input::Ask { request: Request::Status {}, answer });
        assert_eq!(reason(status.try_recv().unwrap()), "terwayd is starting");
        lobby.turn_away(PATIENCE);
        assert!(answered.try_recv().is_err());
        let (waiting, _) = lobby.leave();
        assert!(matches!(waiting.as_slice(), [Input::Ask { request: Request::Allocate { .. }, .. }]));
        assert!(lobby.leave().0.is_empty());
    }

    #[test]
    fn nobody_waits_once_an_attempt_has_failed() {
        let lobby = Lobby::default();
        let (input, answered) = add();
        lobby.take(input);
        lobby.fail("the cloud is down".into());
        assert_eq!(reason(answered.try_recv().unwrap()), "terwayd is starting: the cloud is down");
        let (input, answered) = add();
        lobby.take(input);
        assert_eq!(reason(answered.try_recv().unwrap()), "terwayd is starting: the cloud is down");
        assert!(lobby.leave().0.is_empty());
    }

    #[test]
    fn an_add_waits_no_longer_than_a_start_may_take() {
        let (inputs, arriving) = bounded(1);
        let (input, answered) = add();
        inputs.try_send(input).ok().unwrap();
        let lobby = Lobby::default();
        let start = Instant::now();
        let refused = future::or(async { answered.recv().await.unwrap() }, async {
            lobby.receive(&arriving).await;
            unreachable!("somebody can still ask")
        });
        assert_eq!(reason(block_on(refused).unwrap()), "terwayd is starting");
        assert!(start.elapsed() >= PATIENCE && start.elapsed() < PATIENCE * 2);
    }
}
