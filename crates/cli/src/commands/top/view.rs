//! What is drawn: how the run is doing, its curves, who takes part, and the accounting.

use coordinator::Status;
use ratatui::Frame;
use ratatui::layout::{Alignment, Constraint, Layout, Rect};
use ratatui::style::{Color, Modifier, Style};
use ratatui::symbols::Marker;
use ratatui::text::{Line, Span};
use ratatui::widgets::{Axis, Block, Chart, Dataset, GraphType, Paragraph, Row, Table, Wrap};

use super::curves::{CURVES, Curves};
use crate::decimal::decimal;

/// The least that a curve can be read in.
const CURVE_WIDTH: u16 = 36;
const CURVE_HEIGHT: u16 = 7;
/// Lines of the figures.
const FIGURES_HEIGHT: u16 = 3;
/// Rows that tables at the bottom may take, header and border included.
const TABLES_HEIGHT: u16 = 14;
/// What is said while nobody answers.
pub(super) const AWAY: &str = "(the coordinator does not answer; this is its last word)";

/// Draws a run. `answers` is whether this is how it is now.
pub(super) fn render(frame: &mut Frame, status: &Status, curves: &Curves, answers: bool) {
    let rows = (status.actors.len() + status.reward_servers.len() + 1).max(accounts(status).len());
    let tables = u16::try_from(rows).unwrap_or(u16::MAX).saturating_add(3).min(TABLES_HEIGHT);
    let [head, figures, middle, bottom] = Layout::vertical([
        Constraint::Length(2),
        Constraint::Length(FIGURES_HEIGHT),
        Constraint::Min(CURVE_HEIGHT),
        Constraint::Length(tables),
    ])
    .areas(frame.area());
    head_of(frame, head, status, answers);
    frame.render_widget(Paragraph::new(figures_of(status)).wrap(Wrap { trim: true }), figures);
    draw_curves(frame, middle, curves);
    let [members, accounting] = Layout::horizontal([Constraint::Fill(3), Constraint::Fill(2)]).areas(bottom);
    draw_members(frame, members, status);
    draw_accounts(frame, accounting, status);
}

fn head_of(frame: &mut Frame, area: Rect, status: &Status, answers: bool) {
    let waiting = format!("{} · {:?} · waits for {}", status.run, status.phase, status.waiting_for);
    let mut lines = vec![Line::styled(waiting, Style::new().add_modifier(Modifier::BOLD))];
    lines.push(if !answers {
        Line::styled(AWAY, Style::new().add_modifier(Modifier::REVERSED))
    } else if let Some(hopeless) = &status.hopeless {
        Line::styled(hopeless.clone(), Style::new().fg(Color::Red))
    } else {
        Line::styled("q leaves", Style::new().fg(Color::DarkGray))
    });
    frame.render_widget(Paragraph::new(lines), area);
}

/// Everything that is known in numbers, each behind its name.
fn figures_of(status: &Status) -> Line<'static> {
    let step = status.last_step.as_ref();
    let to_go = status.eta_seconds.map_or_else(|| "?".to_owned(), |seconds| format!("{seconds:.0} s"));
    let figures = [
        ("batch", format!("{}/{}", status.trained, status.batches)),
        ("checkpoint", status.checkpointed.to_string()),
        ("score", number(step.map(|step| step.score_mean))),
        ("pass@1", number(step.and_then(|step| step.outcome_mean))),
        ("KL", number(step.and_then(|step| step.metrics.kl_to_ref))),
        ("length", number(step.map(|step| step.response_tokens_mean))),
        ("cut off", number(step.map(|step| step.truncated))),
        ("entropy", number(step.and_then(|step| step.metrics.entropy))),
        ("clipped", number(step.and_then(|step| step.metrics.clip_fraction))),
        ("gradient", number(step.and_then(|step| step.metrics.policy_grad_norm))),
        ("R²", number(step.and_then(|step| step.reliability.unfiltered))),
        ("R² filtered", number(step.and_then(|step| step.reliability.filtered))),
        ("tokens/s", format!("{:.0}", status.tokens_per_second)),
        ("to go", to_go),
    ];
    let mut spans = Vec::new();
    for (name, value) in figures {
        spans.push(Span::styled(format!("{name} "), Style::new().fg(Color::DarkGray)));
        spans.push(Span::raw(format!("{value}   ")));
    }
    Line::from(spans)
}

/// As many curves as there is room for, the first ones first.
fn draw_curves(frame: &mut Frame, area: Rect, curves: &Curves) {
    let columns = usize::from(area.width / CURVE_WIDTH).clamp(1, 3);
    let rows = usize::from(area.height / CURVE_HEIGHT).clamp(1, CURVES.len().div_ceil(columns));
    let lines = Layout::vertical(vec![Constraint::Fill(1); rows]).split(area);
    for (row, line) in lines.iter().enumerate() {
        let cells = Layout::horizontal(vec![Constraint::Fill(1); columns]).split(*line);
        for (column, cell) in cells.iter().enumerate() {
            let curve = row * columns + column;
            if let Some(name) = CURVES.get(curve) {
                draw_curve(frame, *cell, name, &curves.of(curve));
            }
        }
    }
}

fn draw_curve(frame: &mut Frame, area: Rect, name: &str, points: &[(f64, f64)]) {
    let (Some(first), Some(last)) = (points.first(), points.last()) else {
        let block = Block::bordered().title(name.to_owned());
        frame.render_widget(
            Paragraph::new("not measured yet").alignment(Alignment::Center).block(block),
            area,
        );
        return;
    };
    let title = format!("{name}: {}", short(last.1));
    let lowest = points.iter().map(|(_, value)| *value).fold(f64::INFINITY, f64::min);
    let highest = points.iter().map(|(_, value)| *value).fold(f64::NEG_INFINITY, f64::max);
    // A flat curve lies in the middle.
    let margin = if lowest < highest { 0.0 } else { (lowest.abs() / 10.0).max(0.5) };
    let bounds = [lowest - margin, highest + margin];
    let dataset = Dataset::default()
        .marker(Marker::Braille)
        .graph_type(GraphType::Line)
        .data(points)
        .style(Color::Cyan);
    let batches = Axis::default()
        .bounds([first.0, last.0.max(first.0 + 1.0)])
        .labels([format!("{:.0}", first.0), format!("{:.0}", last.0)]);
    let values = Axis::default().bounds(bounds).labels(bounds.map(short));
    let chart =
        Chart::new(vec![dataset]).block(Block::bordered().title(title)).x_axis(batches).y_axis(values);
    frame.render_widget(chart.legend_position(None), area);
}

fn draw_members(frame: &mut Frame, area: Rect, status: &Status) {
    let mut members = Vec::new();
    if let Some(learner) = &status.learner {
        let work = format!("{:?}, {} rank(s)", learner.phase, learner.world_size);
        members.push((learner.connected, [learner.member.clone(), learner.trained.to_string(), work]));
    }
    for server in &status.reward_servers {
        let work = format!("{} queued", server.queued);
        members.push((server.connected, [server.member.clone(), "-".to_owned(), work]));
    }
    for actor in &status.actors {
        let version = actor.version.map_or_else(|| "-".to_owned(), |version| version.to_string());
        let draining = if actor.draining { ", draining" } else { "" };
        let work = format!(
            "{} running, {} free, {} unacknowledged{draining}",
            actor.running, actor.free_slots, actor.unacknowledged
        );
        members.push((actor.connected, [actor.member.clone(), version, work]));
    }
    // Who is away is seen, however many there are.
    members.sort_by_key(|(connected, _)| *connected);
    let rows = members.into_iter().map(|(connected, [member, version, work])| {
        let (state, style) =
            if connected { ("connected", Style::new()) } else { ("away", Style::new().fg(Color::Red)) };
        ([member, state.to_owned(), version, work], style)
    });
    let widths = [Constraint::Max(24), Constraint::Length(9), Constraint::Length(7), Constraint::Fill(1)];
    draw_table(frame, area, ["member", "state", "version", "work"], widths, rows.collect());
}

/// The accounting: attempts by ending, and failures.
fn accounts(status: &Status) -> Vec<[String; 2]> {
    let account = &status.account;
    let mut rows = vec![["issued".to_owned(), account.issued.to_string()]];
    rows.extend(account.endings.iter().map(|(ending, count)| [ending.clone(), count.to_string()]));
    rows.push(["in flight".to_owned(), account.in_flight.to_string()]);
    rows.push(["unaccounted".to_owned(), account.unaccounted.to_string()]);
    rows.extend(status.failures.iter().map(|failure| {
        let kind = format!("{} ({}): {}", failure.reason, failure.role, failure.detail);
        [kind, failure.count.to_string()]
    }));
    rows
}

fn draw_accounts(frame: &mut Frame, area: Rect, status: &Status) {
    let rows = accounts(status).into_iter().map(|row| (row, Style::new()));
    let widths = [Constraint::Fill(1), Constraint::Length(10)];
    draw_table(frame, area, ["attempts", "number"], widths, rows.collect());
}

/// A table whose last line says how many rows there was no room for.
fn draw_table<const N: usize>(
    frame: &mut Frame,
    area: Rect,
    header: [&'static str; N],
    widths: [Constraint; N],
    mut rows: Vec<([String; N], Style)>,
) {
    // Without border and header.
    let room = usize::from(area.height.saturating_sub(3));
    if rows.len() > room {
        let left_out = rows.len() - room.saturating_sub(1);
        rows.truncate(room.saturating_sub(1));
        let mut last = std::array::from_fn(|_| String::new());
        if let Some(first) = last.first_mut() {
            *first = format!("… and {left_out} more");
        }
        rows.push((last, Style::new().fg(Color::DarkGray)));
    }
    let rows = rows.into_iter().map(|(cells, style)| Row::new(cells).style(style));
    let header = Row::new(header).style(Style::new().add_modifier(Modifier::BOLD));
    frame.render_widget(Table::new(rows, widths).header(header).block(Block::bordered()), area);
}

fn number(value: Option<f64>) -> String {
    value.map_or_else(|| "-".to_owned(), |value| decimal(value, 3))
}

/// A number at an axis: three digits that matter.
fn short(value: f64) -> String {
    match value.abs() {
        size if size >= 1e6 || (size > 0.0 && size < 1e-3) => format!("{value:.1e}"),
        size if size >= 100.0 => decimal(value, 0),
        size if size >= 10.0 => decimal(value, 1),
        _ => decimal(value, 3),
    }
}

#[cfg(test)]
mod tests {
    use coordinator::{AccountStatus, FailureStatus};
    use ratatui::Terminal;
    use ratatui::backend::TestBackend;
    use serde_json::json;

    use super::*;
    use crate::commands::top::curves::tests::step;

    fn status(actors: usize) -> Status {
        let actor = |number: usize| {
            json!({"member": format!("actor-{number}"), "connected": number != 7, "draining": false, "version": 3,
                   "running": 12, "free_slots": 4, "unacknowledged": 1, "generated_tokens": 100})
        };
        let mut status: Status = serde_json::from_value(json!({
            "run": "tiny", "phase": "running", "waiting_for": "scores of 3 responses", "version": 3, "batches": 200,
            "trained": 3, "checkpointed": 2, "ready_prompts": 0, "batch_prompts": 8, "open_prompts": 1,
            "tokens_per_second": 512.4, "eta_seconds": 61.0, "actors": (0..actors).map(actor).collect::<Vec<_>>(),
            "reward_servers": [{"member": "reward-0", "connected": true, "address": "x:1", "queued": 5}],
            "learner": null, "last_step": null,
            "account": {"issued": 0, "in_flight": 0, "endings": {}, "unaccounted": 0, "late_results": 0}
        }))
        .unwrap();
        let endings = [("trained".to_owned(), 96), ("filtered{rank}".to_owned(), 24)].into();
        status.account =
            AccountStatus { issued: 130, in_flight: 10, endings, unaccounted: 0, late_results: 0 };
        status.last_step = Some(step(3));
        let (role, reason) = ("reward-server".to_owned(), "timeout".to_owned());
        status.failures = vec![FailureStatus { role, reason, count: 2, detail: "slow".to_owned() }];
        status
    }

    fn curves() -> Curves {
        let mut curves = Curves::default();
        curves.take(&[step(1), step(2), step(3)]);
        curves
    }

    /// What stands on a screen of this size, line by line.
    fn drawn(width: u16, height: u16, status: &Status, curves: &Curves, answers: bool) -> Vec<String> {
        let mut terminal = Terminal::new(TestBackend::new(width, height)).unwrap();
        terminal.draw(|frame| render(frame, status, curves, answers)).unwrap();
        let buffer = terminal.backend().buffer();
        let cells = buffer.content().chunks(usize::from(width));
        cells.map(|line| line.iter().map(ratatui::buffer::Cell::symbol).collect()).collect()
    }

    fn dots(lines: &[String]) -> usize {
        let all = lines.iter().flat_map(|line| line.chars());
        all.filter(|letter| ('\u{2801}'..='\u{28ff}').contains(letter)).count()
    }

    #[test]
    fn curves_figures_members_and_accounts_are_drawn() {
        let lines = drawn(140, 50, &status(2), &curves(), true);
        let text = lines.join("\n");
        assert!(lines[0].starts_with("tiny · Running · waits for scores of 3 responses"), "{text}");
        for part in [
            "batch 3/200",
            "tokens/s 512",
            "to go 61 s",
            "score: 0.300",
            "outcome (pass@1)",
            "KL to reference (nats): 0.500",
            "scored tokens/s: 1000",
            "step (s): 0.250",
            "response (tokens): 25.0",
            "0.100",
            "actor-1",
            "12 running, 4 free, 1 unacknowledged",
            "reward-0",
            "5 queued",
            "trained",
            "96",
            "filtered{rank}",
            "timeout (reward-server): slow",
        ] {
            assert!(text.contains(part), "{part:?} is not in\n{text}");
        }
        assert!(dots(&lines) > 20, "{text}");
        assert_eq!(text.matches("not measured yet").count(), 1, "no outcome was measured\n{text}");
        // A rising curve begins at the bottom and ends at the top.
        let title = lines.iter().position(|line| line.contains("score: 0.300")).unwrap();
        let column = |line: &String| line.chars().take(46).collect::<String>();
        let drawn: Vec<String> = lines[title..].iter().map(column).collect();
        let with_dots: Vec<&String> = drawn.iter().filter(|line| dots(&[(*line).clone()]) > 0).collect();
        let place = |line: &str| line.chars().position(|c| ('\u{2801}'..='\u{28ff}').contains(&c)).unwrap();
        assert!(place(with_dots[0]) > place(with_dots[3]), "{text}");
    }

    #[test]
    fn who_is_away_is_seen_and_what_has_no_room_is_counted() {
        let lines = drawn(100, 40, &status(64), &curves(), true);
        let text = lines.join("\n");
        assert!(text.contains("actor-7 ") && text.contains("away"), "{text}");
        assert!(text.contains("… and 55 more"), "65 members, ten of which have room\n{text}");
    }

    #[test]
    fn a_coordinator_that_does_not_answer_is_said() {
        assert!(drawn(100, 40, &status(1), &curves(), false)[1].starts_with(AWAY));
        let hopeless = Status { hopeless: Some("no actor has room".to_owned()), ..status(1) };
        assert!(drawn(100, 40, &hopeless, &curves(), true)[1].starts_with("no actor has room"));
    }

    #[test]
    fn every_size_of_a_terminal_can_be_drawn() {
        for (width, height) in [(1, 1), (3, 2), (20, 5), (38, 12), (80, 24), (400, 150)] {
            for steps in [Curves::default(), curves()] {
                drawn(width, height, &status(30), &steps, true);
            }
        }
    }

    #[test]
    fn numbers_at_axes_are_short() {
        let shown = [0.0, 0.1234, 12.34, 1234.5, 2.5e7, 4e-5, -0.5].map(short);
        assert_eq!(shown, ["0.000", "0.123", "12.3", "1234", "2.5e7", "4.0e-5", "-0.500"]);
    }
}
