//! Rate and latency over the depth, one line for each contender, as SVG.
//!
//! Two panels side by side: requests per second from zero up, and latencies by powers of ten, the median as a line and the
//! 99th percentile dashed. Every depth has the same distance to the next. The text needs no fonts of its own.

use std::fmt::{self, Write};

use super::batch::Batch;
use super::sample::Metric;

/// Colours that are told apart also by those who see few; sluice has the second.
const COLOURS: [&str; 7] = ["#707070", "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"];
/// A panel's plot: where it starts, and its size.
const TOP: f64 = 110.0;
const WIDTH: f64 = 400.0;
const HEIGHT: f64 = 300.0;
const LEFT: [f64; 2] = [72.0, 560.0];
/// The whole picture.
const SIZE: [f64; 2] = [1000.0, 474.0];
/// About how many lines a scale from zero has.
const STEPS: f64 = 5.0;

/// A line: the contender, and a figure at each depth.
#[derive(Debug, Clone, PartialEq)]
struct Line {
    name: String,
    points: Vec<(u16, f64)>,
}

/// A vertical axis.
enum Scale {
    /// From zero to this, in steps.
    Linear { max: f64, step: f64 },
    /// Between powers of ten.
    Decades { low: i32, high: i32 },
}

/// The picture of a batch that has every contender at several depths.
pub(super) fn svg(batch: &Batch, title: &str, subtitle: &str) -> String {
    let mut depths: Vec<u16> = batch.cells.iter().map(|cell| cell.workload.depth).collect();
    depths.sort_unstable();
    depths.dedup();
    let rates = lines(batch, Metric::Iops, 1e-3);
    let medians = lines(batch, Metric::P50, 1.0);
    let tails = lines(batch, Metric::P99, 1.0);
    let mut picture = Picture::new(title, subtitle);
    let names: Vec<_> = rates.iter().map(|line| line.name.as_str()).collect();
    picture.legend(&names);

    let scale = Scale::from_zero(values(&rates));
    picture.axes(LEFT[0], "thousand requests per second", &depths, &scale);
    picture.lines(LEFT[0], &rates, &depths, &scale, false);

    let scale = Scale::of_decades(values(&medians).chain(values(&tails)));
    picture.axes(LEFT[1], "latency in microseconds: median, 99th percentile dashed", &depths, &scale);
    picture.lines(LEFT[1], &medians, &depths, &scale, false);
    picture.lines(LEFT[1], &tails, &depths, &scale, true);
    picture.end()
}

fn values(lines: &[Line]) -> impl Iterator<Item = f64> {
    lines.iter().flat_map(|line| line.points.iter().map(|(_, figure)| *figure))
}

/// The lines in the order of the contenders; a depth at which nothing was measured is left out.
fn lines(batch: &Batch, metric: Metric, factor: f64) -> Vec<Line> {
    let mut lines: Vec<Line> = Vec::new();
    for cell in &batch.cells {
        let name = cell.contender.name();
        let index = lines.iter().position(|line| line.name == name).unwrap_or_else(|| {
            lines.push(Line { name: name.into(), points: Vec::new() });
            lines.len() - 1
        });
        if let Some(spread) = cell.spread(metric) {
            lines[index].points.push((cell.workload.depth, spread.median * factor));
        }
    }
    lines
}

impl Scale {
    fn from_zero(figures: impl Iterator<Item = f64>) -> Self {
        let max = figures.fold(1.0, f64::max);
        let rough = max / STEPS;
        let decade = 10_f64.powf(rough.log10().floor());
        let step = [1.0, 2.0, 5.0, 10.0].map(|of| of * decade).into_iter().find(|step| *step >= rough);
        let step = step.unwrap_or(rough);
        Self::Linear { max: (max / step).ceil() * step, step }
    }

    fn of_decades(figures: impl Iterator<Item = f64>) -> Self {
        let (low, high) = figures
            .filter(|figure| *figure > 0.0)
            .map(f64::log10)
            .fold((f64::MAX, f64::MIN), |(low, high), figure| (low.min(figure), high.max(figure)));
        if low > high {
            return Self::Decades { low: 0, high: 1 };
        }
        #[expect(clippy::cast_possible_truncation, reason = "the logarithm of a latency is a small number")]
        let (low, high) = (low.floor() as i32, high.ceil() as i32);
        Self::Decades { low, high: high.max(low + 1) }
    }

    /// How high a figure is, from 0 to 1.
    fn height(&self, figure: f64) -> f64 {
        match self {
            Self::Linear { max, .. } => figure / max,
            Self::Decades { low, high } => {
                (figure.log10() - f64::from(*low)) / (f64::from(*high) - f64::from(*low))
            }
        }
    }

    /// The figures that have a line.
    fn marks(&self) -> Vec<f64> {
        match self {
            Self::Linear { max, step } => {
                let up = std::iter::successors(Some(0.0), |mark| Some(mark + step));
                up.take_while(|mark| *mark <= max + step / 2.0).collect()
            }
            Self::Decades { low, high } => (*low..=*high).map(|power| 10_f64.powi(power)).collect(),
        }
    }
}

/// An SVG that is being written.
struct Picture(String);

impl Picture {
    fn new(title: &str, subtitle: &str) -> Self {
        let [width, height] = SIZE;
        let mut picture = Self(String::new());
        picture.put(format_args!(
            "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width} {height}\" width=\"{width}\" \
             height=\"{height}\" font-family=\"sans-serif\" font-size=\"12\" fill=\"#222\">"
        ));
        picture.put(format_args!("<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>"));
        let left = LEFT[0];
        picture.put(format_args!("<text x=\"{left}\" y=\"26\" font-size=\"17\">{}</text>", escaped(title)));
        picture.put(format_args!("<text x=\"{left}\" y=\"45\" fill=\"#666\">{}</text>", escaped(subtitle)));
        picture
    }

    fn put(&mut self, element: fmt::Arguments<'_>) {
        writeln!(self.0, "{element}").expect("a string takes everything");
    }

    fn legend(&mut self, names: &[&str]) {
        let mut x = LEFT[0];
        for (index, name) in names.iter().enumerate() {
            let colour = colour(index);
            self.put(format_args!(
                "<path d=\"M{x} 64h22\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"68\">{}</text>",
                x + 28.0,
                escaped(name)
            ));
            x += 28.0 + 7.2 * name.chars().count() as f64 + 24.0;
        }
    }

    fn axes(&mut self, left: f64, words: &str, depths: &[u16], scale: &Scale) {
        let bottom = TOP + HEIGHT;
        self.put(format_args!("<text x=\"{left}\" y=\"{}\" fill=\"#666\">{words}</text>", TOP - 10.0));
        for mark in scale.marks() {
            let y = TOP + HEIGHT * (1.0 - scale.height(mark));
            self.put(format_args!(
                "<path d=\"M{left} {y:.1}h{WIDTH}\" stroke=\"#ddd\"/><text x=\"{}\" y=\"{:.1}\" \
                 text-anchor=\"end\">{}</text>",
                left - 8.0,
                y + 4.0,
                number(mark)
            ));
        }
        for (index, depth) in depths.iter().enumerate() {
            let x = left + across(index, depths);
            self.put(format_args!(
                "<text x=\"{x:.1}\" y=\"{}\" text-anchor=\"middle\">{depth}</text>",
                bottom + 18.0
            ));
        }
        self.put(format_args!(
            "<text x=\"{}\" y=\"{}\" text-anchor=\"middle\" fill=\"#666\">requests in flight</text>",
            left + WIDTH / 2.0,
            bottom + 38.0
        ));
    }

    fn lines(&mut self, left: f64, lines: &[Line], depths: &[u16], scale: &Scale, dashed: bool) {
        for (index, line) in lines.iter().enumerate() {
            let place = |(depth, figure): &(u16, f64)| {
                let column = depths.iter().position(|one| one == depth)?;
                Some((left + across(column, depths), TOP + HEIGHT * (1.0 - scale.height(*figure))))
            };
            let points: Vec<_> = line.points.iter().filter_map(place).collect();
            let path: Vec<_> = points.iter().map(|(x, y)| format!("{x:.1},{y:.1}")).collect();
            let colour = colour(index);
            let style =
                if dashed { "stroke-width=\"1.2\" stroke-dasharray=\"5 4\"" } else { "stroke-width=\"2.2\"" };
            self.put(format_args!(
                "<polyline points=\"{}\" fill=\"none\" stroke=\"{colour}\" {style}/>",
                path.join(" ")
            ));
            for (x, y) in points.iter().filter(|_| !dashed) {
                self.put(format_args!("<circle cx=\"{x:.1}\" cy=\"{y:.1}\" r=\"3\" fill=\"{colour}\"/>"));
            }
        }
    }

    fn end(mut self) -> String {
        self.put(format_args!("</svg>"));
        self.0
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

/// How far to the right a depth is.
fn across(index: usize, depths: &[u16]) -> f64 {
    let gaps = depths.len().saturating_sub(1).max(1);
    WIDTH * index as f64 / gaps as f64
}

fn number(figure: f64) -> String {
    if figure >= 1.0 || figure == 0.0 { format!("{figure:.0}") } else { format!("{figure}") }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;")
}

#[cfg(test)]
mod tests {
    use super::super::contender::Contender;
    use super::super::sample::Sample;
    use super::super::workload::{Medium, Op, Workload};
    use super::*;

    fn batch() -> Batch {
        let mut batch = Batch::new("chart");
        for depth in [1, 4, 2] {
            let workload = Workload::new(Medium::Cached, Op::Read, depth);
            batch = batch.cell(workload, &Contender::Bare).cell(workload, &Contender::Sluice);
        }
        for cell in &mut batch.cells {
            cell.samples.push(Sample {
                iops: 1e5 * f64::from(cell.workload.depth),
                p50_us: 10.0,
                p99_us: 100.0,
                p999_us: 1000.0,
                cpu_us: 1.0,
                cores: 1.0,
                switches: 0.0,
                memory_mib: 1.0,
            });
        }
        batch
    }

    #[test]
    fn every_contender_has_a_line_with_a_point_at_each_depth() {
        let found = lines(&batch(), Metric::Iops, 1e-3);
        let expected = [(1, 100.0), (4, 400.0), (2, 200.0)].to_vec();
        assert_eq!(found, [BARE, SLUICE].map(|name| Line { name: name.into(), points: expected.clone() }));
        let picture = svg(&batch(), "a < b", "c & d");
        assert_eq!(picture.matches("<polyline").count(), 6);
        assert_eq!(picture.matches("<circle").count(), 12);
        assert!(picture.contains("a &lt; b") && picture.contains("c &amp; d"));
        assert!(picture.starts_with("<svg ") && picture.ends_with("</svg>\n"));
    }

    use super::super::contender::{BARE, SLUICE};

    #[test]
    fn scales_hold_all_figures_between_round_numbers() {
        let scale = Scale::from_zero([3.0, 788.0].into_iter());
        assert_eq!(scale.marks(), [0.0, 200.0, 400.0, 600.0, 800.0]);
        assert!((scale.height(400.0) - 0.5).abs() < 1e-9);
        let scale = Scale::of_decades([1.7, 583.0].into_iter());
        assert_eq!(scale.marks(), [1.0, 10.0, 100.0, 1000.0]);
        assert!((scale.height(10.0) - 1.0 / 3.0).abs() < 1e-9);
        assert_eq!(Scale::of_decades([0.0].into_iter()).marks(), [1.0, 10.0]);
        assert_eq!(Scale::of_decades([10.0].into_iter()).marks(), [10.0, 100.0]);
    }
}
