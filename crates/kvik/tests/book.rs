//! The book: pages of methods are those that their headers give, and every link leads somewhere.
//!
//! `UPDATE_DOCS=1 cargo test -p kvik --test book` writes the pages anew.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use kvik::method_page::method_page;
use kvik_kv::methods::METHODS;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

#[test]
fn every_method_has_the_page_that_its_header_gives() {
    let folder = docs().join("methods");
    let update = std::env::var_os("UPDATE_DOCS").is_some();
    let summary = fs::read_to_string(docs().join("SUMMARY.md")).unwrap();
    for method in METHODS {
        let path = folder.join(format!("{}.md", method.name));
        let page = method_page(method);
        if update {
            fs::write(&path, &page).unwrap();
        }
        let found = fs::read_to_string(&path).unwrap_or_default();
        assert_eq!(found, page, "{} is out of date: UPDATE_DOCS=1 writes it anew", path.display());
        assert!(
            summary.contains(&format!("methods/{}.md", method.name)),
            "{} is not in SUMMARY.md",
            method.name
        );
    }
    let pages = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let known: HashSet<String> = METHODS.iter().map(|method| format!("{}.md", method.name)).collect();
    let orphans: Vec<String> = pages.filter(|page| !known.contains(page)).collect();
    assert!(orphans.is_empty(), "pages without a method: {orphans:?}");
}

#[test]
fn every_link_of_the_documents_leads_somewhere() {
    let root = docs().join("..");
    let mut documents = vec![root.join("README.md")];
    let mut folders = vec![docs(), root.join("data"), root.join("bench")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "md") {
                documents.push(path);
            }
        }
    }
    assert!(documents.len() > 8, "{documents:?}");
    let mut broken = Vec::new();
    for document in &documents {
        let text = fs::read_to_string(document).unwrap();
        for link in links(&text) {
            let (file, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target =
                if file.is_empty() { document.clone() } else { document.parent().unwrap().join(file) };
            let found = target.exists()
                && (anchor.is_empty()
                    || fs::read_to_string(&target).is_ok_and(|text| anchors(&text).contains(anchor)));
            if !found {
                broken.push(format!("{}: {link}", document.display()));
            }
        }
    }
    assert!(broken.is_empty(), "links that lead nowhere:\n{}", broken.join("\n"));
}

/// Relative targets of `[text](target)` and `![text](target)`, outside code blocks.
fn links(text: &str) -> Vec<String> {
    let mut links = Vec::new();
    let mut code = false;
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            code = !code;
        }
        if code {
            continue;
        }
        for part in line.split("](").skip(1) {
            let target = part.split([')', ' ']).next().unwrap_or_default();
            if !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:") {
                links.push(target.to_owned());
            }
        }
    }
    links
}

/// Anchors that headings make: lower case, words joined by hyphens.
fn anchors(text: &str) -> HashSet<String> {
    let headings = text.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || *c == ' ' || *c == '-' || *c == '_');
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}
