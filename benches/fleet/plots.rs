//! A run as pictures: SVG, three for a scenario.
//!
//! Place: called by `benches/fleet.rs` with `--plots`; what they show is told in `docs/FLEET.md`. Text is the viewer's own
//! font. Failure: what the file system says, as text.

use std::path::Path;

use plotters::prelude::*;

use crate::scenarios::{GOODPUT_MIN, Scenario, THROTTLED_MAX};
use crate::world::Trace;

const SIZE: (u32, u32) = (960, 360);
const BLUE_LINE: RGBColor = RGBColor(0x1f, 0x5f, 0xa8);
const ORANGE_LINE: RGBColor = RGBColor(0xd9, 0x6c, 0x06);
const MARK_LINE: RGBColor = RGBColor(0x99, 0x22, 0x22);

type Drawn = Result<(), Box<dyn std::error::Error>>;

/// Lines of one colour.
struct Lines {
    label: &'static str,
    colour: RGBColor,
    width: u32,
    points: Vec<Vec<(f64, f64)>>,
}

fn draw(path: &Path, title: &str, y_label: &str, y_max: f64, seconds: f64, all: &[Lines]) -> Drawn {
    let area = SVGBackend::new(path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(38)
        .y_label_area_size(58)
        .build_cartesian_2d(0.0..seconds / 60.0, 0.0..y_max)?;
    chart.configure_mesh().x_desc("minutes").y_desc(y_label).light_line_style(WHITE).draw()?;
    for lines in all {
        let style = lines.colour.stroke_width(lines.width);
        for (n, points) in lines.points.iter().enumerate() {
            let drawn = chart.draw_series(LineSeries::new(points.iter().copied(), style))?;
            if n == 0 {
                let colour = lines.colour;
                drawn.label(lines.label).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(2)));
            }
        }
    }
    chart
        .configure_series_labels()
        .position(if y_max > 1.0 && y_max < 2.0 { SeriesLabelPosition::LowerRight } else { SeriesLabelPosition::UpperRight })
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.3))
        .draw()?;
    area.present()?;
    Ok(())
}

/// By spans of so many seconds.
fn over_time(seconds: usize, step: usize, value: impl Fn(usize, usize) -> f64) -> Vec<(f64, f64)> {
    (0..seconds - step + 1)
        .step_by(step)
        .map(|from| ((from as f64 + step as f64 / 2.0) / 60.0, value(from, from + step)))
        .collect()
}

/// Writes goodput, throttled share and rates of a run into the directory.
///
/// # Errors
/// When a file cannot be written.
pub fn write(dir: &Path, scenario: &Scenario, trace: &Trace) -> Drawn {
    let seconds = scenario.setup.seconds;
    let (name, agents) = (scenario.name, trace.present.len());
    let of = format!("{agents} agents, {} shard{}", trace.shards, if trace.shards == 1 { "" } else { "s" });
    let mark =
        |at: f64, label| Lines { label, colour: MARK_LINE, width: 1, points: vec![vec![(0.0, at), (seconds as f64 / 60.0, at)]] };
    let line = |label, points| Lines { label, colour: BLUE_LINE, width: 2, points: vec![points] };

    let goodput = over_time(seconds, 5, |from, until| trace.goodput(from, until));
    draw(
        &dir.join(format!("{name}-goodput.svg")),
        &format!("Goodput: {of}"),
        "part of capacity",
        1.2,
        seconds as f64,
        &[line("stored, 5 s", goodput), mark(GOODPUT_MIN, "mark: 0.95")],
    )?;

    let throttled = over_time(seconds, 5, |from, until| trace.throttled(from, until));
    // Joins go beyond; what matters is near the mark.
    let throttled = throttled.into_iter().map(|(x, y)| (x, y.min(0.1))).collect();
    draw(
        &dir.join(format!("{name}-throttled.svg")),
        &format!("Throttled, cut at 0.1: {of}"),
        "part of what was sent",
        0.1,
        seconds as f64,
        &[line("refused, 5 s", throttled), mark(THROTTLED_MAX, "mark: 0.02")],
    )?;

    // A picture of a thousand lines shows nothing: twenty of each group.
    let step = if trace.shards == 1 { 30 } else { 10 };
    let mut groups = Vec::new();
    let mut first = 0;
    let names = [("there from the beginning", BLUE_LINE), ("join and leave", ORANGE_LINE)];
    for (group, (label, colour)) in scenario.setup.groups.iter().zip(names) {
        let of_agent = |agent: usize| -> Vec<(f64, f64)> {
            let present = trace.present[agent];
            let rate = |from: usize, until: usize| {
                trace.by_agent[from..until].iter().map(|second| f64::from(second[agent])).sum::<f64>() / (until - from) as f64
            };
            over_time(seconds, step, rate).into_iter().filter(|(x, _)| present.0 <= x * 60.0 && x * 60.0 <= present.1).collect()
        };
        let shown = (first..first + group.agents).step_by(group.agents.div_ceil(20));
        groups.push(Lines { label, colour, width: 1, points: shown.map(of_agent).collect() });
        first += group.agents;
    }
    let present_at = |x: f64| trace.present.iter().filter(|present| present.0 <= x && x < present.1).count().max(1);
    let fair = over_time(seconds, 1, |from, _| 1000.0 * trace.shards as f64 / present_at(from as f64 + 0.5) as f64);
    let y_max = 2.5 * fair.iter().skip(10).map(|(_, y)| *y).fold(0.0, f64::max);
    groups.push(Lines {
        label: "equal parts",
        colour: BLACK,
        width: 2,
        points: vec![fair.into_iter().map(|(x, y)| (x, y.min(y_max))).collect()],
    });
    draw(
        &dir.join(format!("{name}-rates.svg")),
        &format!("Records a second, agent by agent, over {step} s: {of}"),
        "records/s",
        y_max,
        seconds as f64,
        &groups,
    )
}
