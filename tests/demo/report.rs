//! The page that the demo leaves: what was shown, as one HTML file that needs nothing else.

use std::fmt::Write;

/// All of it, in the order in which it was seen.
#[derive(Debug, Default, Clone)]
pub struct Report {
    pub title: String,
    /// What a reader wants to know first, each with its name.
    pub facts: Vec<(String, String)>,
    pub chapters: Vec<Chapter>,
    pub faults: usize,
}

#[derive(Debug, Default, Clone)]
pub struct Chapter {
    pub title: String,
    pub items: Vec<Item>,
}

#[derive(Debug, Clone)]
pub enum Item {
    Step {
        what: String,
        detail: String,
        good: bool,
        took: String,
    },
    Table {
        head: Vec<Vec<Field>>,
        rows: Vec<Line>,
    },
    Note(String),
    /// What a command has printed.
    Text {
        title: String,
        body: String,
    },
    Map(Vec<Node>),
}

#[derive(Debug, Clone)]
pub enum Line {
    Fields(Vec<Field>),
    Section(String),
}

#[derive(Debug, Clone)]
pub struct Field {
    pub text: String,
    /// Whether it is as it should be, where that is said.
    pub good: Option<bool>,
    pub right: bool,
}

/// A node as the map draws it.
#[derive(Debug, Clone)]
pub struct Node {
    pub name: String,
    pub about: String,
    pub enis: Vec<Eni>,
}

#[derive(Debug, Clone)]
pub struct Eni {
    pub id: String,
    /// Its link, and where that is.
    pub link: String,
    pub vswitch: String,
    /// Name and address of each pod on it.
    pub pods: Vec<(String, String)>,
}

impl Report {
    pub fn chapter(&mut self, title: &str) {
        self.chapters.push(Chapter { title: title.into(), items: Vec::new() });
    }

    /// Belongs to the present chapter.
    pub fn item(&mut self, item: Item) {
        if self.chapters.is_empty() {
            self.chapter("");
        }
        self.chapters.last_mut().expect("there is one").items.push(item);
    }

    pub fn html(&self) -> String {
        let mut page = String::new();
        let verdict = match self.faults {
            0 => r#"<p class="verdict good">Everything is as it should be</p>"#.to_owned(),
            n => format!(r#"<p class="verdict bad">Not everything is as it should be; faults: {n}</p>"#),
        };
        let facts: String =
            self.facts.iter().map(|(k, v)| format!("<div><dt>{}</dt><dd>{}</dd></div>", text(k), text(v))).collect();
        let title = text(&self.title);
        let _ = write!(
            page,
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:\">\n\
             <link rel=\"icon\" href=\"data:,\">\n<title>{title}</title>\n<style>{STYLE}</style>\n</head>\n<body>\n\
             <header><h1>{title}</h1>{verdict}<dl>{facts}</dl></header>\n<div class=\"page\">\n{}\n<main>\n",
            self.contents()
        );
        for (n, chapter) in self.chapters.iter().enumerate() {
            chapter.write(&mut page, n);
        }
        page + &format!("</main>\n</div>\n<script>{SCRIPT}</script>\n</body>\n</html>\n")
    }

    fn contents(&self) -> String {
        let line = |(n, chapter): (usize, &Chapter)| {
            let bad = if chapter.is_good() { "" } else { r#" class="bad""# };
            format!("<li{bad}><a href=\"#c{n}\">{}</a></li>", text(&chapter.title))
        };
        format!("<nav><ol>{}</ol></nav>", self.chapters.iter().enumerate().map(line).collect::<String>())
    }
}

impl Chapter {
    fn is_good(&self) -> bool {
        let is_bad = |field: &Field| field.good == Some(false);
        self.items.iter().all(|item| match item {
            Item::Step { good, .. } => *good,
            Item::Table { rows, .. } => {
                !rows.iter().any(|row| matches!(row, Line::Fields(fields) if fields.iter().any(is_bad)))
            }
            Item::Note(note) => !note.starts_with('✗'),
            Item::Text { .. } | Item::Map(_) => true,
        })
    }

    fn write(&self, page: &mut String, n: usize) {
        let _ = writeln!(page, "<section id=\"c{n}\">\n<h2>{}</h2>", text(&self.title));
        let mut in_steps = false;
        for item in &self.items {
            let is_step = matches!(item, Item::Step { .. });
            if is_step != in_steps {
                page.push_str(if is_step { "<ul class=\"steps\">\n" } else { "</ul>\n" });
                in_steps = is_step;
            }
            item.write(page);
        }
        page.push_str(if in_steps { "</ul>\n</section>\n" } else { "</section>\n" });
    }
}

impl Item {
    fn write(&self, page: &mut String) {
        let _ = match self {
            Item::Step { what, detail, good, took } => {
                let (class, mark) = if *good { ("good", '✓') } else { ("bad", '✗') };
                let [what, detail, took] = [what, detail, took].map(|t| text(t));
                writeln!(
                    page,
                    "<li class=\"{class}\"><i>{mark}</i><b>{what}</b><span>{detail}</span><time>{took}</time></li>"
                )
            }
            Item::Table { head, rows } => return table(page, head, rows),
            Item::Note(note) => {
                let class = if note.starts_with('✗') { "note bad" } else { "note" };
                writeln!(page, "<p class=\"{class}\">{}</p>", text(note))
            }
            Item::Text { title, body } => {
                writeln!(
                    page,
                    "<details><summary><code>{}</code></summary><pre>{}</pre></details>",
                    text(title),
                    text(body.trim_end())
                )
            }
            Item::Map(nodes) => writeln!(page, "<figure>{}</figure>", map(nodes)),
        };
    }
}

fn table(page: &mut String, head: &[Vec<Field>], rows: &[Line]) {
    let fields = |tag: &str, fields: &[Field]| {
        let field = |field: &Field| {
            let good = match field.good {
                Some(true) => "good",
                Some(false) => "bad",
                None => "",
            };
            let right = if field.right { " right" } else { "" };
            format!("<{tag} class=\"{good}{right}\">{}</{tag}>", text(&field.text))
        };
        format!("<tr>{}</tr>\n", fields.iter().map(field).collect::<String>())
    };
    page.push_str("<div class=\"scroll\"><table>\n<thead>");
    page.extend(head.iter().map(|line| fields("th", line)));
    page.push_str("</thead>\n<tbody>");
    let columns = head.first().map_or(1, Vec::len);
    page.extend(rows.iter().map(|row| match row {
        Line::Fields(line) => fields("td", line),
        Line::Section(name) => format!("<tr class=\"section\"><th colspan=\"{columns}\">{}</th></tr>\n", text(name)),
    }));
    page.push_str("</tbody></table></div>\n");
}

fn text(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

// ---- the map ----

/// The VPC stands at the left; from there a wire leads to each ENI of each node, and from the ENI to the pods that have its addresses.
const VPC: usize = 74;
const ENI: usize = 236;
const POD: usize = 148;
const ROW: usize = 56;
const HIGH: usize = 44;
const HEAD: usize = 40;
const GAP: usize = 14;
/// Pods beside each other; more go on below.
const ABREAST: usize = 5;

impl Node {
    fn rows(&self) -> usize {
        self.enis.iter().map(Eni::rows).sum()
    }

    fn height(&self) -> usize {
        HEAD + self.rows() * ROW + 4
    }
}

impl Eni {
    fn rows(&self) -> usize {
        self.pods.len().div_ceil(ABREAST).max(1)
    }
}

fn map(nodes: &[Node]) -> String {
    let width = VPC + 2 * GAP + 3 * GAP + ENI + ABREAST * (POD + GAP);
    let height = nodes.iter().map(|node| node.height() + GAP).sum::<usize>() + GAP;
    let mut svg = format!(
        "<svg viewBox=\"0 0 {width} {height}\" role=\"img\" aria-label=\"the VPC, its nodes, their ENIs and pods\">\n\
         <rect class=\"vpc\" x=\"1\" y=\"{GAP}\" width=\"{VPC}\" height=\"{}\" rx=\"8\"/>\n<text class=\"name\" x=\"22\" y=\"{}\">VPC</text>\n",
        height - 2 * GAP,
        GAP + 26
    );
    let mut y = GAP;
    for node in nodes {
        svg += &draw(node, VPC + 2 * GAP, y, width - VPC - 2 * GAP - 1);
        y += node.height() + GAP;
    }
    svg + "</svg>"
}

fn draw(node: &Node, x: usize, y: usize, wide: usize) -> String {
    let mut svg = format!(
        "<rect class=\"node\" x=\"{x}\" y=\"{y}\" width=\"{wide}\" height=\"{}\" rx=\"10\"/>\n\
         <text class=\"name\" x=\"{1}\" y=\"{2}\">{3}</text><text class=\"faint\" x=\"{4}\" y=\"{2}\">{5}</text>\n",
        node.height(),
        x + GAP,
        y + 26,
        text(&node.name),
        x + GAP + 64,
        text(&node.about)
    );
    let mut at = y + HEAD;
    for eni in &node.enis {
        svg += &draw_eni(eni, x + GAP, at);
        at += eni.rows() * ROW;
    }
    svg
}

fn draw_eni(eni: &Eni, x: usize, y: usize) -> String {
    let middle = y + HIGH / 2;
    let mut svg = format!(
        "<path class=\"wire\" d=\"M{} {middle}H{x}\"/>\n<rect class=\"eni\" x=\"{x}\" y=\"{y}\" width=\"{ENI}\" height=\"{HIGH}\" rx=\"6\"/>\n\
         <text class=\"mono\" x=\"{1}\" y=\"{2}\">{3}</text><text class=\"faint\" x=\"{4}\" y=\"{2}\" text-anchor=\"end\">{5}</text>\n\
         <text class=\"mono faint\" x=\"{1}\" y=\"{6}\">{7}</text>\n",
        VPC + 1,
        x + 10,
        y + 18,
        text(&eni.link),
        x + ENI - 10,
        text(&eni.vswitch),
        y + 36,
        text(&eni.id)
    );
    for (n, (name, address)) in eni.pods.iter().enumerate() {
        let (left, top) = (x + ENI + 2 * GAP + n % ABREAST * (POD + GAP), y + n / ABREAST * ROW);
        let from = if n % ABREAST == 0 { x + ENI + if n == 0 { 0 } else { GAP } } else { left - GAP };
        svg += &format!(
            "<g class=\"pod\" data-pod=\"{0}\" tabindex=\"0\"><path class=\"wire\" d=\"M{from} {1}H{left}\"/>\
             <rect x=\"{left}\" y=\"{top}\" width=\"{POD}\" height=\"{HIGH}\" rx=\"6\"/><text class=\"name\" x=\"{2}\" y=\"{3}\">{0}</text>\
             <text class=\"mono faint\" x=\"{2}\" y=\"{4}\">{5}</text></g>\n",
            text(name),
            top + HIGH / 2,
            left + 10,
            top + 18,
            top + 36,
            text(address)
        );
    }
    svg
}

const STYLE: &str = "
:root { color-scheme: light dark; --ink: #1f2933; --faint: #616e7c; --line: #d5dce3; --ground: #f6f8fa; --box: #ffffff; --good: #1a7f4b; --bad: #c62828; --mark: #0b65c2; --soft: #e8f0fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6edf3; --faint: #9aa7b4; --line: #34404c; --ground: #10161c; --box: #19222b; --good: #4ecb8b; --bad: #ff7b72; --mark: #63a8ff; --soft: #1d2c3d; } }
* { box-sizing: border-box; }
body { margin: 0; font: 15px/1.5 system-ui, 'DejaVu Sans', sans-serif; color: var(--ink); background: var(--ground); }
header { padding: 28px 32px 20px; border-bottom: 1px solid var(--line); background: var(--box); }
h1 { margin: 0 0 6px; font-size: 26px; letter-spacing: -0.01em; }
h2 { margin: 0 0 12px; font-size: 18px; }
.verdict { margin: 0 0 14px; font-weight: 600; } .verdict::before { content: '✓ '; } .verdict.bad::before { content: '✗ '; }
.good { color: var(--good); } .bad { color: var(--bad); }
dl { display: flex; flex-wrap: wrap; gap: 8px 36px; margin: 0; } dt { font-size: 12px; color: var(--faint); } dd { margin: 0; }
.page { display: grid; grid-template-columns: 250px minmax(0, 1fr); gap: 28px; max-width: 1380px; padding: 24px 32px; }
nav ol { position: sticky; top: 20px; margin: 0; padding: 0; list-style: none; font-size: 14px; }
nav li { border-left: 3px solid var(--good); padding: 3px 12px; } nav li.bad { border-color: var(--bad); }
nav a { color: inherit; text-decoration: none; } nav a:hover { color: var(--mark); }
section { padding: 18px 22px; margin-bottom: 18px; background: var(--box); border: 1px solid var(--line); border-radius: 10px; }
.steps { margin: 0 0 10px; padding: 0; list-style: none; }
.steps li { display: grid; grid-template-columns: 20px minmax(0, 380px) minmax(0, 1fr) 74px; gap: 8px; padding: 3px 0; color: inherit; }
.steps i { font-style: normal; } .steps .good i { color: var(--good); } .steps .bad i, .steps .bad b { color: var(--bad); }
.steps b { font-weight: 500; } .steps span { color: var(--faint); } .steps time { color: var(--faint); text-align: right; font-variant-numeric: tabular-nums; }
.scroll { overflow-x: auto; margin: 10px 0 14px; }
table { border-collapse: collapse; font-size: 14px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 14px 5px 0; text-align: left; border-bottom: 1px solid var(--line); white-space: nowrap; }
thead th { font-size: 12px; color: var(--faint); font-weight: 600; } .section th { padding-top: 14px; } .right { text-align: right; }
tr.lit td { background: var(--soft); }
.note { margin: 6px 0; color: var(--faint); font-size: 14px; } .note.bad { color: var(--bad); }
details { margin: 6px 0; border: 1px solid var(--line); border-radius: 6px; } summary { padding: 6px 12px; cursor: pointer; }
code, pre { font: 13px/1.5 ui-monospace, 'DejaVu Sans Mono', monospace; } pre { margin: 0; padding: 4px 14px 12px; overflow-x: auto; }
figure { margin: 4px 0 14px; overflow-x: auto; } svg { width: 100%; min-width: 720px; max-width: 1160px; display: block; }
svg text { font: 13px system-ui, 'DejaVu Sans', sans-serif; fill: var(--ink); } svg .name { font-weight: 600; } svg .faint { fill: var(--faint); font-size: 12px; }
svg .mono { font: 12px ui-monospace, 'DejaVu Sans Mono', monospace; }
svg .vpc, svg .node { fill: var(--ground); stroke: var(--line); } svg .eni { fill: var(--box); stroke: var(--mark); stroke-width: 1.5; }
svg .pod rect { fill: var(--box); stroke: var(--line); } svg .pod { cursor: pointer; outline: none; } svg .pod.lit rect, svg .pod:focus rect { fill: var(--soft); stroke: var(--mark); }
svg .wire { fill: none; stroke: var(--line); stroke-width: 1.5; }
@media (max-width: 860px) { .page { grid-template-columns: 1fr; padding: 16px; } nav ol { position: static; } header { padding: 20px 16px; } .steps li { grid-template-columns: 20px 1fr 74px; } .steps span { grid-column: 2; grid-row: 2; } }
";

/// Who points at a pod of the map sees it in the tables too.
const SCRIPT: &str = "
for (const pod of document.querySelectorAll('svg .pod')) {
  const light = on => {
    const name = pod.dataset.pod;
    pod.classList.toggle('lit', on);
    for (const row of document.querySelectorAll('tbody tr')) {
      if ([...row.cells].some(cell => cell.textContent === name)) row.classList.toggle('lit', on);
    }
  };
  for (const [event, on] of [['mouseenter', true], ['focus', true], ['mouseleave', false], ['blur', false]]) pod.addEventListener(event, () => light(on));
}
document.body.dataset.pods = document.querySelectorAll('svg .pod').length;
";
