//! A run as a page with one picture: a lane per region over virtual time, what passed between them,
//! what went wrong, and where it broke. The page needs nothing but itself, not even a script.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use crate::plan::Plan;
use crate::shrink::invariant;
use crate::world::Ran;
use crate::world::story::{Answer, What, detail, regions};

const LEFT: f64 = 120.0;
const PLOT: f64 = 1_220.0;
const WIDTH: f64 = LEFT + PLOT + 20.0;
const TOP: f64 = 46.0;
// A lane, from its top: faults' names, whether it is up, commits, answers, how far it is behind.
const NAMES: f64 = 44.0;
const UP: f64 = 10.0;
const BARS: f64 = 26.0;
const LANE: f64 = NAMES + UP + 3.0 * (BARS + 5.0);
const GAP: f64 = 40.0;
// How wide a column of a histogram is, and how close two arrows may be.
const COLUMN: f64 = 4.0;
const ARROW_EVERY: f64 = 11.0;

const STYLE: &str = "
:root{color-scheme:light dark;--ink:#1c2733;--dim:#66727f;--paper:#fbfbf9;--lane:#f0f1ee;--grid:#dcdfdb;
--up:#3c9a5f;--down:#c43c35;--commit:#4a7fb5;--written:#3c9a5f;--refused:#d99a1c;--unknown:#8e5bb5;
--behind:#b06a3b;--cut:#c43c35;--arrow:#8296a8;--fault:#9a3412;--red:#b3261e;--redbg:#fbe9e7}
@media (prefers-color-scheme:dark){:root{--ink:#e3e7ea;--dim:#94a0ab;--paper:#14181c;--lane:#1c2228;
--grid:#2c343b;--up:#4fb477;--down:#e0645c;--commit:#6ba3db;--written:#4fb477;--refused:#e2ae45;
--unknown:#b387d6;--behind:#d08f5f;--cut:#e0645c;--arrow:#64788a;--fault:#f0a070;--red:#ff8a80;--redbg:#3a1d1b}}
body{margin:16px 20px;background:var(--paper);color:var(--ink);font:14px/1.45 system-ui,sans-serif}
h1{font-size:19px;margin:0 0 2px}code{font:13px ui-monospace,monospace}
p{margin:2px 0;color:var(--dim)}.ok{color:var(--up)}.red{color:var(--red)}
.broken{background:var(--redbg);border-left:4px solid var(--red);padding:6px 12px;margin:8px 0}
.broken p{color:var(--ink);overflow-wrap:anywhere}.key span{margin-right:16px;white-space:nowrap}
.key i{display:inline-block;width:11px;height:11px;margin-right:5px;vertical-align:-1px}
svg{display:block;margin-top:8px;max-width:100%;height:auto}
svg text{font:11px system-ui,sans-serif;fill:var(--ink)}svg .dim{fill:var(--dim)}
svg .name{font-size:14px;font-weight:600}svg .fault{fill:var(--fault)}svg .mark{fill:var(--red);font-weight:600}
";

const KEY: [(&str, &str); 9] = [
    ("--up", "node runs"),
    ("--down", "down"),
    ("--commit", "commits"),
    ("--written", "acknowledged"),
    ("--refused", "refused"),
    ("--unknown", "unknown"),
    ("--behind", "events not held yet"),
    ("--arrow", "datagrams (a few of them)"),
    ("--cut", "cut, or lost"),
];

/// The page of a run whose story was kept.
pub fn page(plan: &Plan, ran: &Ran) -> String {
    let report = &ran.report;
    let (class, word) = if report.ok {
        ("ok", "green")
    } else {
        ("red", "RED")
    };
    let mut html = format!(
        "<!doctype html>\n<html lang=\"en\"><meta charset=\"utf-8\"><title>seed {0} {word}</title>\
         <style>{STYLE}</style>\n<h1>seed {0} <span class=\"{class}\">{word}</span></h1>\n\
         <p>{1} events in {2:.1} virtual seconds, {3} steps, trace <code>{4}</code></p>\n",
        report.seed, report.events, report.virtual_s, report.steps, report.trace
    );
    let counts = |counts: &BTreeMap<String, u64>| {
        let all: Vec<_> = counts.iter().map(|(it, n)| format!("{n} {it}")).collect();
        escape(&all.join(", "))
    };
    put(
        &mut html,
        format_args!("<p>answers: {}</p>\n", counts(&report.answers)),
    );
    if !report.broken.is_empty() {
        html.push_str("<div class=\"broken\">");
        for what in report.broken.iter().take(4) {
            let text: String = what.chars().take(260).collect();
            put(&mut html, format_args!("<p>{}</p>", escape(&text)));
        }
        if report.broken.len() > 4 {
            put(
                &mut html,
                format_args!("<p>and {} more</p>", report.broken.len() - 4),
            );
        }
        html.push_str("</div>\n");
    }
    html.push_str("<p class=\"key\">");
    for (color, word) in KEY {
        put(
            &mut html,
            format_args!("<span><i style=\"background:var({color})\"></i>{word}</span>"),
        );
    }
    html.push_str("</p>\n");
    Drawing::new(plan, ran).draw(&mut html);
    html.push_str("</html>\n");
    html
}

fn put(out: &mut String, what: std::fmt::Arguments<'_>) {
    // Writing to a string does not fail.
    let _ = out.write_fmt(what);
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

type Histogram = BTreeMap<usize, f64>;

struct Drawing<'a> {
    plan: &'a Plan,
    ran: &'a Ran,
    end: f64,
}

impl<'a> Drawing<'a> {
    fn new(plan: &'a Plan, ran: &'a Ran) -> Self {
        let last = ran.story.last().map_or(0.0, |it| it.at.as_secs_f64());
        let end = last.max(0.001);
        Self { plan, ran, end }
    }

    fn x(&self, at: Duration) -> f64 {
        LEFT + (at.as_secs_f64() / self.end).clamp(0.0, 1.0) * PLOT
    }

    fn lane(region: usize) -> f64 {
        TOP + count(region) * (LANE + GAP)
    }

    // The strip in which what passes between two regions is drawn: between their lanes if those
    // are neighbours, else below all lanes.
    fn strips(&self) -> Vec<(usize, usize, f64)> {
        let regions = self.plan.regions.len();
        let mut below = Self::lane(regions) - GAP + 8.0;
        let mut strips = Vec::new();
        for a in 0..regions {
            for b in a + 1..regions {
                let top = if b == a + 1 {
                    Self::lane(a) + LANE + 2.0
                } else {
                    below += GAP;
                    below - GAP
                };
                strips.push((a, b, top));
            }
        }
        strips
    }

    fn draw(&self, out: &mut String) {
        let strips = self.strips();
        let lanes = Self::lane(self.plan.regions.len()) - GAP;
        let bottom = strips
            .iter()
            .map(|(_, _, top)| top + GAP)
            .fold(lanes, f64::max);
        put(
            out,
            format_args!(
                "<svg viewBox=\"0 0 {WIDTH} {0}\" width=\"{WIDTH}\" height=\"{0}\" role=\"img\" \
                 aria-label=\"the run over virtual time\">\n",
                bottom + 10.0
            ),
        );
        for region in 0..self.plan.regions.len() {
            rect(
                out,
                (LEFT, Self::lane(region), PLOT, LANE),
                "--lane",
                1.0,
                "",
            );
        }
        self.axis(out, bottom);
        for (a, b, top) in strips {
            self.strip(out, a, b, top);
        }
        for region in 0..self.plan.regions.len() {
            self.region(out, region);
        }
        self.marks(out, bottom);
        out.push_str("</svg>\n");
    }

    fn axis(&self, out: &mut String, bottom: f64) {
        let step = [0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0]
            .into_iter()
            .find(|step| self.end / step <= 16.0)
            .unwrap_or(300.0);
        let mut at = 0.0;
        while at <= self.end {
            let x = self.x(Duration::from_secs_f64(at));
            line(out, (x, TOP - 4.0), (x, bottom), "--grid", 1.0);
            text(out, (x, TOP - 10.0), "dim", "middle", &format!("{at} s"));
            at += step;
        }
    }

    fn region(&self, out: &mut String, region: usize) {
        let top = Self::lane(region);
        let name = self.plan.regions[region].name.as_str();
        text(out, (LEFT - 8.0, top + 20.0), "name", "end", name);
        self.faults(out, region, top);
        let mut row = top + NAMES;
        self.up(out, region, row);
        row += UP + 3.0;
        for word in ["commits", "answers", "behind"] {
            text(out, (LEFT - 8.0, row + 18.0), "dim", "end", word);
            match word {
                "commits" => {
                    let commits = |of: usize| {
                        self.histogram(|what| matches!(what, What::Commits(it) if *it == of))
                    };
                    let most = self.highest(|of| vec![commits(of)]);
                    self.bars(out, row, most, &[(commits(region), "--commit")]);
                }
                "answers" => {
                    let most = self.highest(|of| self.answers(of).map(|it| it.0).into());
                    self.bars(out, row, most, &self.answers(region));
                }
                _ => self.behind(out, region, row),
            }
            row += BARS + 5.0;
        }
    }

    fn answers(&self, region: usize) -> [(Histogram, &'static str); 3] {
        [
            (Answer::Written, "--written"),
            (Answer::Refused, "--refused"),
            (Answer::Unknown, "--unknown"),
        ]
        .map(|(kind, color)| {
            let histogram = self.histogram(|what| {
                matches!(what, What::Answered { client, answer, .. }
                    if *client == region && *answer == kind)
            });
            (histogram, color)
        })
    }

    // Over all regions, so that lanes can be compared.
    fn highest(&self, of: impl Fn(usize) -> Vec<Histogram>) -> f64 {
        (0..self.plan.regions.len())
            .map(|region| {
                let mut sum = Histogram::new();
                for (column, height) in of(region).into_iter().flatten() {
                    *sum.entry(column).or_default() += height;
                }
                sum.into_values().fold(1.0, f64::max)
            })
            .fold(1.0, f64::max)
    }

    fn histogram(&self, counts: impl Fn(&What) -> bool) -> Histogram {
        let mut histogram = Histogram::new();
        for happened in self.ran.story.iter().filter(|it| counts(&it.what)) {
            *histogram.entry(self.column(happened.at)).or_default() += 1.0;
        }
        histogram
    }

    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a column of a picture, never negative"
    )]
    fn column(&self, at: Duration) -> usize {
        ((self.x(at) - LEFT) / COLUMN) as usize
    }

    fn bars(&self, out: &mut String, row: f64, most: f64, parts: &[(Histogram, &str)]) {
        let mut below: Histogram = Histogram::new();
        for (histogram, color) in parts {
            for (column, height) in histogram {
                // One of a kind among many must still be seen.
                let height = (height / most * BARS).max(2.0);
                let base = below.entry(*column).or_default();
                let y = (row + BARS - *base - height).max(row - 3.0);
                let x = LEFT + count(*column) * COLUMN;
                rect(out, (x, y, COLUMN - 0.8, height), color, 1.0, "");
                *base += height;
            }
        }
    }

    fn up(&self, out: &mut String, region: usize, row: f64) {
        text(out, (LEFT - 8.0, row + 9.0), "dim", "end", "runs");
        rect(out, (LEFT, row, PLOT, UP), "--down", 1.0, "");
        let mut since = None;
        for happened in &self.ran.story {
            match happened.what {
                What::Runs(it) if it == region => {
                    since.get_or_insert(happened.at);
                }
                What::Ends(it) if it == region => self.runs(out, row, since.take(), happened.at),
                What::Over => self.runs(out, row, since.take(), happened.at),
                _ => {}
            }
        }
        let last = self.ran.story.last().map_or(Duration::ZERO, |it| it.at);
        self.runs(out, row, since, last);
    }

    fn runs(&self, out: &mut String, row: f64, since: Option<Duration>, until: Duration) {
        if let Some(since) = since {
            let (from, to) = (self.x(since), self.x(until));
            rect(out, (from, row, (to - from).max(0.0), UP), "--up", 1.0, "");
        }
    }

    // How many events the region lacks of those that some region holds.
    fn behind(&self, out: &mut String, region: usize, row: f64) {
        let mut held: BTreeMap<usize, u64> = BTreeMap::new();
        let mut lacking: BTreeMap<usize, BTreeMap<usize, u64>> = BTreeMap::new();
        for happened in &self.ran.story {
            if let What::Holds(it, events) = happened.what {
                held.insert(it, events);
                let most = held.values().copied().max().unwrap_or_default();
                let column = self.column(happened.at);
                for (of, events) in &held {
                    let there = lacking.entry(*of).or_default().entry(column).or_default();
                    *there = (most - events).max(*there);
                }
            }
        }
        let most = lacking.values().flat_map(BTreeMap::values).copied().max();
        let most = to_f64(most.unwrap_or_default().max(20));
        let mine = lacking.remove(&region).unwrap_or_default();
        if let Some(highest) = mine.values().copied().max().filter(|it| *it > 0) {
            let word = format!("≤ {highest}");
            text(out, (LEFT + PLOT + 18.0, row - 1.0), "dim", "end", &word);
        }
        for (column, events) in mine.into_iter().filter(|(_, events)| *events > 0) {
            let height = (to_f64(events) / most * BARS).max(1.0);
            let x = LEFT + count(column) * COLUMN;
            rect(
                out,
                (x, row + BARS - height, COLUMN, height),
                "--behind",
                0.75,
                "",
            );
        }
    }

    // Names of faults stand in rows, so that those close in time do not cover each other.
    fn faults(&self, out: &mut String, region: usize, top: f64) {
        let mut free = [LEFT; 3];
        for happened in &self.ran.story {
            let What::Fault(kind) = &happened.what else {
                continue;
            };
            let about = regions(kind);
            if !about.contains(&region) {
                continue;
            }
            let x = self.x(happened.at);
            let name = match about.iter().find(|it| **it != region) {
                Some(other) => {
                    let other = self.plan.regions.get(*other).map_or("?", |it| &it.name);
                    format!("{} {other}", kind.name())
                }
                None => kind.name().to_owned(),
            };
            let row = free.iter().position(|end| *end <= x).unwrap_or(2);
            free[row] = x + 12.0 + 6.0 * count(name.len());
            let y = top + 12.0 + count(row) * 13.0;
            line(out, (x, y - 9.0), (x, top + NAMES + UP), "--fault", 1.2);
            // Near the right edge, the name stands to the left.
            let (anchor, at) = if x > LEFT + PLOT - 110.0 {
                ("end", x - 3.0)
            } else {
                ("start", x + 3.0)
            };
            put(
                out,
                format_args!(
                    "<text x=\"{at:.1}\" y=\"{y:.1}\" class=\"fault\" text-anchor=\"{anchor}\">{}\
                     <title>{} at {:.3} s: {}</title></text>\n",
                    escape(&name),
                    escape(&name),
                    happened.at.as_secs_f64(),
                    escape(&detail(kind))
                ),
            );
        }
    }

    // What passed between two regions: arrows down on the left of each pair, up on the right.
    fn strip(&self, out: &mut String, a: usize, b: usize, top: f64) {
        let (upper, lower) = (top + 3.0, top + GAP - 7.0);
        let names = &self.plan.regions;
        let word = format!("{} ⇄", names[a].name);
        text(out, (LEFT - 8.0, top + 15.0), "dim", "end", &word);
        text(out, (LEFT - 8.0, top + 28.0), "dim", "end", &names[b].name);
        let latency = self
            .plan
            .links
            .iter()
            .find(|link| (link.a, link.b) == (a, b) || (link.b, link.a) == (a, b))
            .map_or(0, |link| link.latency_ms);
        for (from, to, y, y_end, side) in [(a, b, upper, lower, "↓"), (b, a, lower, upper, "↑")]
        {
            let half = (lower - upper) / 2.0;
            let half_top = if from == a { upper } else { upper + half };
            let mut cut_since = None;
            let mut last_arrow = f64::MIN;
            for happened in &self.ran.story {
                let at = happened.at;
                match happened.what {
                    What::Cut(f, t) if (f, t) == (from, to) => {
                        cut_since.get_or_insert(at);
                    }
                    What::Repaired(f, t) if (f, t) == (from, to) => {
                        self.cut(out, cut_since.take(), at, half_top, half, side);
                    }
                    What::Healed | What::Over => {
                        self.cut(out, cut_since.take(), at, half_top, half, side);
                    }
                    What::Sent {
                        from: f,
                        to: t,
                        lost,
                    } if (f, t) == (from, to) => {
                        let x = self.x(at);
                        if lost {
                            put(
                                out,
                                format_args!(
                                    "<circle cx=\"{x:.1}\" cy=\"{:.1}\" r=\"1.4\" \
                                     fill=\"var(--cut)\"/>\n",
                                    half_top + half / 2.0
                                ),
                            );
                        } else if cut_since.is_none() && x - last_arrow > ARROW_EVERY {
                            last_arrow = x;
                            let x_end = self.x(at + Duration::from_millis(latency));
                            arrow(out, (x, y), (x_end, y_end));
                        }
                    }
                    _ => {}
                }
            }
        }
    }

    fn cut(
        &self,
        out: &mut String,
        since: Option<Duration>,
        until: Duration,
        top: f64,
        height: f64,
        side: &str,
    ) {
        let Some(since) = since else { return };
        let (from, to) = (self.x(since), self.x(until));
        let title = format!(
            "cut {side} from {:.3} s to {:.3} s",
            since.as_secs_f64(),
            until.as_secs_f64()
        );
        let shape = (from, top, (to - from).max(1.5), height);
        rect(out, shape, "--cut", 0.55, &title);
        if to - from > 24.0 {
            let at = (f64::midpoint(from, to), top + height - 3.0);
            text(out, at, "", "middle", &format!("cut {side}"));
        }
    }

    // The heal, and the moments that what is broken speaks of.
    fn marks(&self, out: &mut String, bottom: f64) {
        for happened in &self.ran.story {
            if happened.what == What::Healed {
                let x = self.x(happened.at);
                line(out, (x, TOP - 24.0), (x, bottom), "--up", 1.5);
                text(out, (x + 4.0, TOP - 26.0), "dim", "start", "all healed");
            }
        }
        let mut marks: BTreeMap<u128, String> = BTreeMap::new();
        for what in self.ran.report.broken.iter().take(12) {
            let times = moments(what);
            for at in times.iter().take(2) {
                marks
                    .entry(at.as_millis())
                    .or_insert_with(|| format!("{} at {at:.3?}", invariant(what)));
            }
            if times.is_empty() {
                let at = Duration::from_secs_f64(self.end);
                marks
                    .entry(at.as_millis())
                    .or_insert_with(|| format!("{} (seen at the end)", invariant(what)));
            }
        }
        let mut free = f64::MIN;
        for (at_ms, word) in marks.into_iter().take(12) {
            let at = Duration::from_millis(u64::try_from(at_ms).unwrap_or(u64::MAX));
            let x = self.x(at);
            line(out, (x, TOP - 24.0), (x, bottom), "--red", 2.0);
            let late = x > LEFT + PLOT - 160.0;
            if x > free || late {
                let (anchor, by) = if late { ("end", -4.0) } else { ("start", 4.0) };
                let y = if late { TOP - 36.0 } else { TOP - 26.0 };
                text(out, (x + by, y), "mark", anchor, &word);
                free = x + 7.0 * count(word.len());
            }
        }
    }
}

/// The moments that a sentence names, as `Duration`'s debug output writes them.
fn moments(text: &str) -> Vec<Duration> {
    let mut found = Vec::new();
    let words = text.split(|it: char| it.is_whitespace() || ",:;()".contains(it));
    for word in words {
        let (number, unit) = if let Some(number) = word.strip_suffix("ms") {
            (number, 0.001)
        } else if let Some(number) = word.strip_suffix('s') {
            (number, 1.0)
        } else {
            continue;
        };
        if let Ok(number) = number.parse::<f64>()
            && number.is_finite()
            && (0.0..100_000.0).contains(&number)
            // The world speaks of whole seconds when it means how long, not when.
            && word.contains('.')
        {
            found.push(Duration::from_secs_f64(number * unit));
        }
    }
    found
}

#[expect(clippy::cast_precision_loss, reason = "places in a picture")]
fn count(number: usize) -> f64 {
    number as f64
}

#[expect(clippy::cast_precision_loss, reason = "heights in a picture")]
fn to_f64(number: u64) -> f64 {
    number as f64
}

fn rect(out: &mut String, shape: (f64, f64, f64, f64), color: &str, opacity: f64, title: &str) {
    let (x, y, width, height) = shape;
    put(
        out,
        format_args!(
            "<rect x=\"{x:.1}\" y=\"{y:.1}\" width=\"{width:.1}\" height=\"{height:.1}\" \
             fill=\"var({color})\" opacity=\"{opacity}\">"
        ),
    );
    if !title.is_empty() {
        put(out, format_args!("<title>{}</title>", escape(title)));
    }
    out.push_str("</rect>\n");
}

fn line(out: &mut String, from: (f64, f64), to: (f64, f64), color: &str, width: f64) {
    put(
        out,
        format_args!(
            "<path d=\"M{:.1} {:.1}L{:.1} {:.1}\" stroke=\"var({color})\" stroke-width=\"{width}\"/>\n",
            from.0, from.1, to.0, to.1
        ),
    );
}

fn arrow(out: &mut String, from: (f64, f64), to: (f64, f64)) {
    let back = if to.1 > from.1 { -4.0 } else { 4.0 };
    put(
        out,
        format_args!(
            "<path d=\"M{:.1} {:.1}L{:.1} {:.1}m-2 {back}l2 {:.1}l2 {back}\" fill=\"none\" \
             stroke=\"var(--arrow)\" stroke-width=\"0.9\"/>\n",
            from.0, from.1, to.0, to.1, -back
        ),
    );
}

fn text(out: &mut String, at: (f64, f64), class: &str, anchor: &str, text: &str) {
    put(
        out,
        format_args!(
            "<text x=\"{:.1}\" y=\"{:.1}\" class=\"{class}\" text-anchor=\"{anchor}\">{}</text>\n",
            at.0,
            at.1,
            escape(text)
        ),
    );
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::world::Report;
    use crate::world::story::Happened;

    #[test]
    fn moments_are_found_in_what_is_broken() {
        let text = "durable: call 4 at 2.5s (asked at 812.25ms) is gone 60s after, a trace 5 steps";
        assert_eq!(
            moments(text),
            [Duration::from_millis(2_500), Duration::from_micros(812_250)]
        );
    }

    #[test]
    fn a_page_shows_lanes_cuts_and_what_broke_and_escapes_it() {
        let at = Duration::from_secs(1);
        let told = |what| Happened { at, what };
        let ran = Ran {
            report: Report {
                broken: vec!["durable: <gone> at 0.5s".to_owned()],
                ..Report::default()
            },
            lines: Vec::new(),
            story: vec![told(What::Cut(0, 1)), told(What::Over)],
        };
        let page = page(&Plan::calm(0), &ran);
        for part in [
            "us-east",
            "ap-south",
            "cut ↓",
            "&lt;gone&gt;",
            "durable at 500",
        ] {
            assert!(page.contains(part), "{part}");
        }
    }
}
