//! The book: pages of methods are those that their headers give, and every link leads somewhere.
//!
//! `UPDATE_DOCS=1 cargo test -p kvik --test book` writes the pages anew.

use std::{
    collections::HashSet,
    fs,
    path::{Path, PathBuf},
};

use kvik::method_page::method_page;
use kvik_eval::reproduce::{Record, table};
use kvik_kv::methods::METHODS;

fn docs() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs")
}

/// Holds the file at `path` to be `text`, or writes it when the book is to be updated.
fn stands_in(path: &Path, text: &str) {
    if std::env::var_os("UPDATE_DOCS").is_some() {
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    let found = fs::read_to_string(path).unwrap_or_default();
    assert_eq!(found, text, "{} is out of date: UPDATE_DOCS=1 writes it anew", path.display());
}

#[test]
fn every_method_has_the_page_that_its_header_gives() {
    let folder = docs().join("methods");
    for method in METHODS {
        stands_in(&folder.join(format!("{}.md", method.name)), &method_page(method));
    }
    let pages = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let known: HashSet<String> = METHODS.iter().map(|method| format!("{}.md", method.name)).collect();
    let orphans: Vec<String> = pages.filter(|page| !known.contains(page)).collect();
    assert!(orphans.is_empty(), "pages without a method: {orphans:?}");
}

#[test]
fn every_method_stands_in_the_table_of_contents() {
    let path = docs().join("SUMMARY.md");
    let summary = fs::read_to_string(&path).unwrap();
    let (before, rest) = summary.split_once("# Methods\n").unwrap();
    let after = &rest[rest.find("\n# ").unwrap()..];
    let methods: String =
        METHODS.iter().map(|method| format!("- [`{0}`](methods/{0}.md)\n", method.name)).collect();
    stands_in(&path, &format!("{before}# Methods\n\n{methods}{after}"));
}

#[test]
fn the_table_of_reproductions_is_that_of_the_records() {
    let records = fs::read_dir(docs().join("../reproductions")).unwrap();
    let mut records: Vec<Record> = records
        .map(|entry| serde_json::from_str(&fs::read_to_string(entry.unwrap().path()).unwrap()).unwrap())
        .collect();
    records.sort_by(|a, b| a.name.cmp(&b.name));
    stands_in(&docs().join("reproductions.md"), &table(&records));
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
