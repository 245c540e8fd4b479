//! A method's page in the book, written from the method's own header.

use std::fmt::Write;

use kvik_kv::MethodInfo;

/// The page of `method` as Markdown.
pub fn method_page(method: &'static MethodInfo) -> String {
    let header = method.page();
    let (title, text) = header.split_once('\n').unwrap_or((&header, ""));
    let mut page = format!("# {title}\n{text}\n\n## In pipelines\n\n");
    // Writing to a string cannot fail.
    let _ = writeln!(
        page,
        "`{}` changes {}.{} Its cache {} serve as a shared prefix of other requests.\n",
        method.name,
        method.direction.about(),
        method.calibration.map(|what| format!(" It needs {what}.")).unwrap_or_default(),
        if method.query_free { "may" } else { "may not" },
    );
    page.push_str("| parameter | default | values | |\n| --- | --- | --- | --- |\n");
    for parameter in method.parameters {
        let values = parameter.kind.to_string();
        let about = parameter.about.replace('|', "\\|");
        let _ = writeln!(page, "| `{}` | {} | {values} | {about} |", parameter.name, parameter.default);
    }
    let others: Vec<String> =
        method.composes_with().map(|other| format!("[`{0}`]({0}.md)", other.name)).collect();
    if !others.is_empty() {
        let _ = writeln!(page, "\nComposes with {}.", others.join(", "));
    }
    page
}
