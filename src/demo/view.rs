//! The live view: ports with their rates, the story, and why frames ended. Drawn for 80 x 24, in any terminal.
//!
//! Colours only underline what the words say already: it reads the same without them.

use std::io;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use ratatui::Frame;
use ratatui::crossterm::event::{self, Event, KeyCode, KeyEventKind, KeyModifiers};
use ratatui::layout::{Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::text::{Line, Span};
use ratatui::widgets::{Block, Cell, Paragraph, Row, Table, Wrap};

use crate::guests::board::{Board, Outcome, PortRow, Scene, Step, wrap};

/// Time between two pictures.
const INTERVAL: Duration = Duration::from_millis(150);

/// How long the last picture stays.
const LAST: Duration = Duration::from_secs(5);

/// Shows the board until the story has ended or somebody wants to leave.
///
/// # Errors
/// The terminal fails.
pub fn run(board: &Arc<Board>, story: &JoinHandle<()>, color: bool) -> io::Result<()> {
    let mut terminal = ratatui::try_init()?;
    let mut ended: Option<Instant> = None;
    let result = loop {
        let scene = board.scene().clone();
        let drawn = terminal.draw(|frame| draw(frame, &scene, Palette { color }, board.started.elapsed()));
        if let Err(error) = drawn {
            break Err(error);
        }
        match leaves() {
            Ok(true) => break Ok(()),
            Ok(false) => {}
            Err(error) => break Err(error),
        }
        if story.is_finished() && ended.get_or_insert_with(Instant::now).elapsed() > LAST || board.stopped() {
            break Ok(());
        }
    };
    ratatui::try_restore()?;
    result
}

/// Waits for a key; whether it is one that leaves.
fn leaves() -> io::Result<bool> {
    if !event::poll(INTERVAL)? {
        return Ok(false);
    }
    let Event::Key(key) = event::read()? else { return Ok(false) };
    let interrupt = key.modifiers.contains(KeyModifiers::CONTROL) && key.code == KeyCode::Char('c');
    Ok(key.kind == KeyEventKind::Press && (interrupt || matches!(key.code, KeyCode::Char('q') | KeyCode::Esc)))
}

/// Colours, or none.
#[derive(Clone, Copy)]
struct Palette {
    color: bool,
}

impl Palette {
    fn ink(self, color: Color) -> Style {
        if self.color { Style::new().fg(color) } else { Style::new() }
    }

    fn of_state(self, state: &str) -> Style {
        match state {
            "running" => self.ink(Color::Green),
            "faulted" | "blocked" | "no daemon" => self.ink(Color::Red).add_modifier(Modifier::BOLD),
            _ => self.ink(Color::Yellow),
        }
    }
}

fn draw(frame: &mut Frame<'_>, scene: &Scene, palette: Palette, elapsed: Duration) {
    let port_lines = u16::try_from(scene.ports.len()).unwrap_or(u16::MAX).saturating_add(3).clamp(4, 12);
    let hint_lines = if scene.hints.is_empty() { 0 } else { scene.hints.len() as u16 + 2 };
    let [title, ports, middle, hints, foot] = Layout::vertical([
        Constraint::Length(1),
        Constraint::Length(port_lines),
        Constraint::Min(3),
        Constraint::Length(hint_lines),
        Constraint::Length(1),
    ])
    .areas(frame.area());
    let seconds = elapsed.as_secs();
    let heading = format!(" hostweave demo  {:02}:{:02}   {}", seconds / 60, seconds % 60, scene.daemon);
    frame.render_widget(Line::styled(heading, Style::new().add_modifier(Modifier::BOLD)), title);
    frame.render_widget(port_table(&scene.ports, palette), ports);
    let [story, drops] = Layout::horizontal([Constraint::Min(30), Constraint::Length(30)]).areas(middle);
    draw_story(frame, scene, palette, story);
    frame.render_widget(drop_list(scene, palette), drops);
    if hint_lines > 0 {
        let block = Block::bordered().title(" The daemon stays until q. In another terminal: ");
        frame.render_widget(Paragraph::new(scene.hints.join("\n")).block(block), hints);
    }
    let keys = if scene.over { " q leave   the story is over" } else { " q leave" };
    frame.render_widget(Line::styled(keys, Style::new().add_modifier(Modifier::REVERSED)), foot);
}

fn port_table(ports: &[PortRow], palette: Palette) -> Table<'_> {
    let header = ["PORT", "NET", "IPV4", "IPV6", "STATE", "FRAMES/S", "SENT", "GOT"];
    let rows = ports.iter().map(|port| {
        Row::new(vec![
            Cell::new(port.name.as_str()),
            Cell::new(port.network.as_str()),
            Cell::new(port.addresses[0].as_str()),
            Cell::new(port.addresses[1].as_str()),
            // `waiting-for-frontend` is too long for 80 columns; what it waits for is a VMM.
            Cell::new(Span::styled(port.state.split("-for-").next().unwrap_or("-"), palette.of_state(&port.state))),
            Cell::new(format!("{:>8}", count(port.packets_per_s))),
            Cell::new(gbit(port.sent_gbit_per_s)),
            Cell::new(gbit(port.got_gbit_per_s)),
        ])
    });
    let widths = [8, 4, 10, 19, 9, 8, 6, 6].map(Constraint::Length);
    Table::new(rows, widths)
        .header(Row::new(header).style(Style::new().add_modifier(Modifier::BOLD)))
        .block(Block::bordered().title(" Ports   (SENT and GOT by the VM in Gbit/s) "))
}

fn draw_story(frame: &mut Frame<'_>, scene: &Scene, palette: Palette, area: Rect) {
    let width = usize::from(area.width.saturating_sub(2)).max(1);
    let mut lines: Vec<Line<'_>> = scene.steps.iter().flat_map(|step| step_lines(step, palette, width)).collect();
    // What is newest must be seen.
    let hidden = lines.len().saturating_sub(usize::from(area.height.saturating_sub(2)));
    let shown: Vec<Line<'_>> = lines.split_off(hidden);
    frame.render_widget(Paragraph::new(shown).block(Block::bordered().title(" Story ")), area);
}

/// A part of the story: its name, and below it what was seen, in as many lines as it takes.
fn step_lines(step: &Step, palette: Palette, width: usize) -> Vec<Line<'_>> {
    let (mark, style, text) = match &step.outcome {
        Outcome::Running(text) => ("...", palette.ink(Color::Yellow), text),
        Outcome::Passed(text) => ("ok ", palette.ink(Color::Green), text),
        Outcome::Skipped(text) => ("-- ", palette.ink(Color::Yellow), text),
        Outcome::Failed(text) => ("NO ", palette.ink(Color::Red).add_modifier(Modifier::BOLD), text),
    };
    let mut lines = vec![Line::from(vec![
        Span::styled(mark, style),
        Span::raw(" "),
        Span::styled(step.name, Style::new().add_modifier(Modifier::BOLD)),
    ])];
    lines.extend(wrap(text, width.saturating_sub(4)).into_iter().map(|line| Line::raw(format!("    {line}"))));
    lines
}

fn drop_list(scene: &Scene, palette: Palette) -> Paragraph<'_> {
    let mut sorted: Vec<(&String, &u64)> = scene.drops.iter().collect();
    sorted.sort_by_key(|(_, count)| std::cmp::Reverse(**count));
    let mut lines: Vec<Line<'_>> = sorted
        .into_iter()
        .map(|(reason, count)| {
            let style = if reason.starts_with("spoofed") { palette.ink(Color::Red) } else { Style::new() };
            Line::from(vec![
                Span::raw(format!("{:>7} ", self::count(*count as f64))),
                Span::styled(reason.as_str(), style),
            ])
        })
        .collect();
    if lines.is_empty() {
        lines.push(Line::raw("   none"));
    }
    Paragraph::new(lines).wrap(Wrap { trim: false }).block(Block::bordered().title(" Drops by reason "))
}

/// `123`, `12.3k`, `4.56M`.
fn count(value: f64) -> String {
    match value {
        v if v < 10_000.0 => format!("{v:.0}"),
        v if v < 1e6 => format!("{:.1}k", v / 1e3),
        v => format!("{:.2}M", v / 1e6),
    }
}

fn gbit(value: f64) -> String {
    if value < 0.0005 { format!("{:>6}", "-") } else { format!("{value:>6.2}") }
}

#[cfg(test)]
mod tests {
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;

    use super::*;

    fn picture(scene: &Scene, color: bool) -> (String, bool) {
        let mut terminal = Terminal::new(TestBackend::new(80, 24)).unwrap();
        terminal.draw(|frame| draw(frame, scene, Palette { color }, Duration::from_secs(65))).unwrap();
        let buffer = terminal.backend().buffer();
        let lines: Vec<String> =
            buffer.content().chunks(80).map(|row| row.iter().map(|cell| cell.symbol()).collect()).collect();
        (lines.join("\n"), buffer.content().iter().any(|cell| cell.fg != Color::Reset || cell.bg != Color::Reset))
    }

    fn scene() -> Scene {
        let port = |name: &str, state: &str| PortRow {
            name: name.into(),
            network: "shop".into(),
            addresses: ["10.77.0.20".into(), "fd77::aff:fe4d:14".into()],
            state: state.into(),
            packets_per_s: 123_456.0,
            sent_gbit_per_s: 12.345,
            got_gbit_per_s: 0.0,
        };
        let step = |name, outcome| Step { name, outcome, took: Duration::ZERO };
        Scene {
            steps: vec![
                step("ping", Outcome::Passed("round trip 40 µs".into())),
                step("spoofing", Outcome::Running("cache pretends to be db".into())),
            ],
            ports: vec![port("stranger", "running"), port("db", "faulted"), port("web", "waiting-for-frontend")],
            drops: [("spoofed_ip".to_owned(), 40)].into(),
            daemon: "process 4711, up 3s, 1 worker 42 % busy".into(),
            ..Scene::default()
        }
    }

    #[test]
    fn everything_fits_into_80_by_24() {
        let (text, _) = picture(&scene(), true);
        for word in [
            "01:05",
            "process 4711",
            "42 % busy",
            "stranger",
            "10.77.0.20",
            "fd77::aff:fe4d:14",
            "faulted",
            "waiting ",
            "123.5k",
            "12.35",
            "ok  ping",
            "round trip 40 µs",
            "...",
            "cache pretends",
            "40 spoofed_ip",
            "q leave",
        ] {
            assert!(text.contains(word), "{word} is not in\n{text}");
        }
    }

    #[test]
    fn without_colours_it_says_the_same() {
        let (with, colored) = picture(&scene(), true);
        let (without, still) = picture(&scene(), false);
        assert_eq!(with, without);
        assert!(colored && !still);
    }

    #[test]
    fn the_newest_part_is_always_seen() {
        let mut scene = scene();
        let long = Outcome::Passed("word ".repeat(60));
        scene.steps = vec![Step { name: "old", outcome: long, took: Duration::ZERO }; 5];
        scene.steps.push(Step { name: "newest", outcome: Outcome::Failed("why".into()), took: Duration::ZERO });
        let (text, _) = picture(&scene, false);
        assert!(text.contains("NO  newest") && text.contains("why"), "{text}");
    }

    #[test]
    fn hints_stand_below_the_story() {
        let hints = ["export HOSTWEAVE_CONTROL=/tmp/hostweave-demo.abcdef/run/control.sock", "hostweave status"];
        let (text, _) = picture(&Scene { hints: hints.map(str::to_owned).to_vec(), ..scene() }, false);
        assert!(hints.iter().all(|hint| text.contains(hint)) && text.contains("cache pretends"), "{text}");
    }

    #[test]
    fn numbers_are_short() {
        assert_eq!([count(9.6), count(12_345.0), count(2_345_678.0)], ["10", "12.3k", "2.35M"]);
        assert_eq!([gbit(0.0), gbit(1.234)], ["     -", "  1.23"]);
    }
}
