//! `kvik methods`: what can be done to the cache.

use std::io::{self, Write};

use anyhow::bail;
use kvik_kv::{MethodInfo, ParameterKind, methods::METHODS, pipeline::registry};
use serde::Serialize;

/// List the methods that rewrite the cache, or show one
#[derive(Debug, clap::Args)]
#[command(after_help = EXAMPLES)]
pub struct Args {
    /// The method to show
    name: Option<String>,
    /// As JSON
    #[arg(long)]
    json: bool,
}

const EXAMPLES: &str = "\
Examples:
  kvik methods
  kvik methods snapkv
  kvik generate --file report.txt --kv 'snapkv(budget=512)'";

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    match &args.name {
        None if args.json => {
            let all: Vec<Entry> = METHODS.iter().map(|method| Entry::new(method)).collect();
            serde_json::to_writer_pretty(&mut out, &all).map_err(io::Error::from)?;
            writeln!(out)?;
        }
        None => list(&mut out)?,
        Some(name) => {
            let Some(method) = registry::find(name) else { bail!(registry::unknown(name)) };
            if args.json {
                serde_json::to_writer_pretty(&mut out, &Entry::new(method)).map_err(io::Error::from)?;
                writeln!(out)?;
            } else {
                show(&mut out, method)?;
            }
        }
    }
    Ok(())
}

fn list(out: &mut impl Write) -> io::Result<()> {
    let width = METHODS.iter().map(|method| method.name.len()).max().unwrap_or(0);
    for method in METHODS {
        writeln!(out, "{:width$}  {}", method.name, method.summary)?;
        writeln!(out, "{:width$}    changes {}; {}", "", method.direction.about(), method.paper)?;
        let parameters: Vec<String> =
            method.parameters.iter().map(|p| format!("{}={}", p.name, p.default)).collect();
        writeln!(out, "{:width$}    {}", "", parameters.join(" "))?;
        writeln!(out, "{:width$}    with {}", "", names(method).join(", "))?;
        if let Some(calibration) = method.calibration {
            writeln!(out, "{:width$}    needs {calibration}", "")?;
        }
    }
    writeln!(out, "\nA pipeline joins them with +, as in --kv 'snapkv(budget=512)+kivi(bits=2)'.")
}

fn show(out: &mut impl Write, method: &'static MethodInfo) -> io::Result<()> {
    writeln!(out, "{}\n", method.page())?;
    writeln!(out, "Changes {}. Composes with {}.", method.direction.about(), names(method).join(", "))?;
    if let Some(calibration) = method.calibration {
        writeln!(out, "Needs {calibration}.")?;
    }
    writeln!(out, "\nParameters")?;
    for parameter in method.parameters {
        writeln!(out, "  {}={}  {}: {}", parameter.name, parameter.default, parameter.kind, parameter.about)?;
    }
    Ok(())
}

fn names(method: &'static MethodInfo) -> Vec<&'static str> {
    method.composes_with().map(|other| other.name).collect()
}

/// A method as JSON.
#[derive(Serialize)]
struct Entry {
    name: &'static str,
    summary: &'static str,
    changes: &'static str,
    paper: &'static str,
    parameters: Vec<ParameterEntry>,
    composes_with: Vec<&'static str>,
    query_free: bool,
    calibration: Option<&'static str>,
    page: String,
}

#[derive(Serialize)]
struct ParameterEntry {
    name: &'static str,
    default: &'static str,
    #[serde(rename = "type")]
    kind: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    choices: Option<&'static [&'static str]>,
    about: &'static str,
}

impl Entry {
    fn new(method: &'static MethodInfo) -> Self {
        let parameters = method.parameters.iter().map(|parameter| ParameterEntry {
            name: parameter.name,
            default: parameter.default,
            kind: parameter.kind.to_string(),
            choices: match parameter.kind {
                ParameterKind::Choice(words) => Some(words),
                _ => None,
            },
            about: parameter.about,
        });
        Self {
            name: method.name,
            summary: method.summary,
            changes: method.direction.about(),
            paper: method.paper,
            parameters: parameters.collect(),
            composes_with: names(method),
            query_free: method.query_free,
            calibration: method.calibration,
            page: method.page(),
        }
    }
}
