//! What is known so far: the parts of the story, the ports as last sampled, what is worth a line at the end.
//!
//! The story writes, a live view reads. Without a live view each part is printed as soon as it has ended.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;

/// Columns of the summary.
const WIDTH: usize = 80;

/// What became of a part of the story.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Outcome {
    /// It goes on; what happens now.
    Running(String),
    /// It went as it must; what was seen.
    Passed(String),
    /// It did not; why.
    Failed(String),
    /// There is nothing to try here; why.
    Skipped(String),
}

/// The error of a part that has nothing to try here; the text says why.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Skip(pub String);

/// A part of the story.
#[derive(Clone, Debug)]
pub struct Step {
    /// One word.
    pub name: &'static str,
    /// What became of it.
    pub outcome: Outcome,
    /// How long it took.
    pub took: Duration,
}

/// A port as last sampled.
#[derive(Clone, Debug, Default)]
pub struct PortRow {
    /// Name.
    pub name: String,
    /// Its network.
    pub network: String,
    /// Its first IPv4 and IPv6 address.
    pub addresses: [String; 2],
    /// As `port list` says it.
    pub state: String,
    /// Frames per second, both directions.
    pub packets_per_s: f64,
    /// Gbit/s that the guest sends.
    pub sent_gbit_per_s: f64,
    /// Gbit/s that the guest gets.
    pub got_gbit_per_s: f64,
}

/// Everything the live view shows.
#[derive(Clone, Debug, Default)]
pub struct Scene {
    /// The story so far.
    pub steps: Vec<Step>,
    /// Ports, in the order of their names.
    pub ports: Vec<PortRow>,
    /// Drops of all ports by reason, since the daemon started.
    pub drops: BTreeMap<String, u64>,
    /// The daemon in one line.
    pub daemon: String,
    /// What was seen, a label and a line each.
    pub facts: Vec<(&'static str, String)>,
    /// What a person can do now.
    pub hints: Vec<String>,
    /// Whether the story has ended.
    pub over: bool,
}

/// The scene, and the wish to stop.
pub struct Board {
    /// What the summary begins with.
    title: &'static str,
    scene: Mutex<Scene>,
    stop: AtomicBool,
    /// Whether somebody else shows what happens, such as a live view: then nothing is printed.
    pub live: bool,
    /// When it began.
    pub started: Instant,
}

impl Board {
    /// An empty board.
    pub fn new(title: &'static str, live: bool) -> Self {
        Self { title, scene: Mutex::default(), stop: AtomicBool::new(false), live, started: Instant::now() }
    }

    /// The scene, to read or to change.
    pub fn scene(&self) -> MutexGuard<'_, Scene> {
        self.scene.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Plays a part of the story; true when it went well. Nothing is played once somebody wants to stop.
    pub fn step(&self, name: &'static str, part: impl FnOnce() -> anyhow::Result<String>) -> bool {
        if self.stopped() {
            return false;
        }
        self.play(name, part)
    }

    /// As [`Board::step`], but played also when somebody wants to stop: it is how the story stops.
    pub fn last_step(&self, name: &'static str, part: impl FnOnce() -> anyhow::Result<String>) -> bool {
        self.play(name, part)
    }

    fn play(&self, name: &'static str, part: impl FnOnce() -> anyhow::Result<String>) -> bool {
        let (stopped_before, asked) = (self.stopped(), Instant::now());
        self.scene().steps.push(Step { name, outcome: Outcome::Running(String::new()), took: Duration::ZERO });
        let (outcome, line) = match part() {
            Ok(seen) => (Outcome::Passed(seen.clone()), format!("PASS  {name:<10} {seen}")),
            Err(error) if error.is::<Skip>() => {
                (Outcome::Skipped(error.to_string()), format!("SKIP  {name:<10} {error}"))
            }
            // A part that was cut short says nothing about the product.
            Err(_) if self.stopped() && !stopped_before => {
                (Outcome::Running("cut short".into()), format!("STOP  {name:<10} cut short"))
            }
            Err(error) => (Outcome::Failed(format!("{error:#}")), format!("FAIL  {name:<10} {error:#}")),
        };
        let passed = matches!(outcome, Outcome::Passed(_));
        if let Some(step) = self.scene().steps.last_mut() {
            (step.outcome, step.took) = (outcome, asked.elapsed());
        }
        self.print(&line);
        passed
    }

    /// Says what the running part is doing.
    pub fn progress(&self, what: impl Into<String>) {
        let what = what.into();
        let mut scene = self.scene();
        if let Some(Step { outcome: Outcome::Running(now), .. }) = scene.steps.last_mut()
            && *now != what
        {
            *now = what;
        }
    }

    /// Keeps a line for the end.
    pub fn fact(&self, label: &'static str, line: impl Into<String>) {
        self.scene().facts.push((label, line.into()));
    }

    /// Prints a line where there is no live view.
    pub fn print(&self, line: &str) {
        if !self.live {
            println!("{line}");
        }
    }

    /// Somebody wants to stop.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// Whether somebody wants to stop.
    pub fn stopped(&self) -> bool {
        self.stop.load(Ordering::Relaxed)
    }

    /// Waits until `done` gives something.
    ///
    /// # Errors
    /// It took longer than `timeout`, or somebody wants to stop.
    pub fn wait<T>(
        &self,
        what: &str,
        timeout: Duration,
        mut done: impl FnMut() -> anyhow::Result<Option<T>>,
    ) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            if let Some(value) = done()? {
                return Ok(value);
            }
            if self.stopped() {
                bail!("stopped");
            }
            if start.elapsed() >= timeout {
                bail!("not within {} s: {what}", timeout.as_secs_f64());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Waits for what another thread sends.
    ///
    /// # Errors
    /// It took longer than `timeout`, the other thread has ended, or somebody wants to stop.
    pub fn receive<T>(&self, what: &str, receiver: &Receiver<T>, timeout: Duration) -> anyhow::Result<T> {
        let start = Instant::now();
        loop {
            match receiver.recv_timeout(Duration::from_millis(50)) {
                Ok(value) => return Ok(value),
                Err(RecvTimeoutError::Disconnected) => bail!("{what}: it broke off"),
                Err(RecvTimeoutError::Timeout) if self.stopped() => bail!("stopped"),
                Err(RecvTimeoutError::Timeout) if start.elapsed() >= timeout => {
                    bail!("{what}: not within {} s", timeout.as_secs_f64())
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Lets `time` pass, or less if somebody wants to stop.
    pub fn rest(&self, time: Duration) {
        let start = Instant::now();
        while !self.stopped() && start.elapsed() < time {
            std::thread::sleep(Duration::from_millis(20).min(time));
        }
    }

    /// In a live view, time to read what was just seen.
    pub fn pause(&self) {
        if self.live {
            self.rest(Duration::from_millis(1500));
        }
    }

    /// Whether every part went well, to the end of the story or until the person who watches had seen enough.
    pub fn passed(&self) -> bool {
        let scene = self.scene();
        let failed = scene.steps.iter().any(|step| matches!(step.outcome, Outcome::Failed(_)));
        !failed && (scene.over || self.live && self.stopped())
    }

    /// The summary.
    pub fn summary(&self) -> String {
        let scene = self.scene();
        let passed = scene.steps.iter().filter(|step| matches!(step.outcome, Outcome::Passed(_))).count();
        let skipped = scene.steps.iter().filter(|step| matches!(step.outcome, Outcome::Skipped(_))).count();
        let (seconds, tried) = (self.started.elapsed().as_secs_f64(), scene.steps.len() - skipped);
        let skipped = if skipped > 0 { format!(", {skipped} skipped") } else { String::new() };
        let mut text = format!("\n{}: {passed} of {tried} passed{skipped}, {seconds:.1} s\n", self.title);
        for step in &scene.steps {
            if let Outcome::Failed(reason) = &step.outcome
                && self.live
            {
                text += &format!("  FAIL {}: {reason}\n", step.name);
            }
        }
        let mut last = "";
        for (label, line) in &scene.facts {
            let mut shown = if *label == last { "" } else { label };
            // A table keeps its columns.
            let lines = if line.contains("  ") { vec![line.clone()] } else { wrap(line, WIDTH - 13) };
            for line in lines {
                text += &format!("  {shown:<10} {line}\n");
                shown = "";
            }
            last = label;
        }
        text
    }
}

/// Breaks a text between words.
pub fn wrap(text: &str, width: usize) -> Vec<String> {
    let mut lines: Vec<String> = Vec::new();
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.chars().count() + 1 + word.chars().count() <= width => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_failed_part_fails_the_demo() {
        let board = Board::new("test", true);
        assert!(board.step("good", || Ok("seen".into())));
        board.scene().over = true;
        assert!(board.passed());
        assert!(!board.step("bad", || bail!("why")));
        assert!(!board.passed());
        assert!(board.summary().contains("1 of 2 passed"));
        assert!(board.summary().contains("FAIL bad: why"));
    }

    #[test]
    fn a_story_that_did_not_reach_its_end_has_not_passed() {
        let board = Board::new("test", true);
        board.step("good", || Ok(String::new()));
        assert!(!board.passed());
        board.stop();
        assert!(board.passed(), "somebody wanted to stop");
        assert!(!board.step("late", || Ok(String::new())), "nothing is played afterwards");
    }

    #[test]
    fn what_there_is_nothing_to_try_of_is_not_counted() {
        let board = Board::new("test", true);
        board.step("good", || Ok(String::new()));
        assert!(!board.step("none", || Err(Skip("there is no uplink".to_owned()).into())));
        board.scene().over = true;
        assert!(board.passed());
        assert!(board.summary().contains("test: 1 of 1 passed, 1 skipped"), "{}", board.summary());
    }

    #[test]
    fn waiting_for_a_thread_ends_when_somebody_wants_to_stop() {
        let board = Board::new("test", true);
        let (sender, receiver) = std::sync::mpsc::channel::<()>();
        board.stop();
        let error = board.receive("nothing", &receiver, Duration::from_secs(60)).unwrap_err();
        assert_eq!(error.to_string(), "stopped");
        drop(sender);
        assert!(board.receive("it", &receiver, Duration::from_secs(60)).unwrap_err().to_string().contains("broke off"));
    }

    #[test]
    fn lines_break_between_words() {
        assert_eq!(wrap("a bb  ccc", 4), ["a bb", "ccc"]);
        assert_eq!(wrap("longer than that", 3), ["longer", "than", "that"]);
    }

    #[test]
    fn waiting_ends() {
        let board = Board::new("test", true);
        let mut left = 3;
        let counted = board.wait("three", Duration::from_secs(5), || {
            left -= 1;
            Ok((left == 0).then_some("zero"))
        });
        assert_eq!(counted.unwrap(), "zero");
        let error = board.wait("never", Duration::from_millis(20), || Ok(None::<()>)).unwrap_err();
        assert!(error.to_string().contains("never"), "{error}");
    }
}
