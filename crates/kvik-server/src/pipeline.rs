//! The `kv` field: a pipeline that comes from outside.
//!
//! A pipeline of the command line may name files. One that comes with a request may not: it could read or write what
//! its sender must not see. So parameters that name a file keep their defaults, and the folder for what methods move
//! out of RAM is the server's to choose; where it has chosen none, such methods are refused.

use std::path::Path;

use kvik_kv::{
    Pipeline,
    pipeline::{ParameterKind, Stage},
};

use crate::{config::Config, error::ApiError};

/// Bytes of a pipeline. An error shows it whole.
const LONGEST: usize = 2000;

/// The pipeline of a request with this `kv` field, or without one.
///
/// # Errors
/// As for [`from_request`].
pub fn of_request(kv: Option<&str>, config: &Config) -> Result<Pipeline, ApiError> {
    match kv {
        Some(text) => from_request(text, config.spill_dir.as_deref()),
        None => Ok(config.pipeline.clone()),
    }
}

/// The pipeline that a request's `kv` field writes, with its files in `spill_dir`.
///
/// # Errors
/// 400: it is no pipeline, and at which character; or it names a file.
fn from_request(text: &str, spill_dir: Option<&Path>) -> Result<Pipeline, ApiError> {
    let invalid = |message: String| ApiError::invalid(message).param("kv").code("invalid_pipeline");
    if text.len() > LONGEST {
        return Err(invalid(format!("kv has {} bytes: a pipeline has at most {LONGEST}", text.len())));
    }
    let asked = Pipeline::parse(text).map_err(|error| {
        invalid(format!("kv: {} (character {})\n  {}", error.message, error.at, pointed(&error)))
    })?;
    let stages: Result<Vec<String>, ApiError> =
        asked.stages().iter().map(|stage| inside(stage, spill_dir).map_err(invalid)).collect();
    let text = stages?.join("+");
    Pipeline::parse(&text).map_err(|error| invalid(format!("kv: {}", error.message)))
}

/// The text and a caret below the character that is wrong.
fn pointed(error: &kvik_kv::pipeline::PipelineError) -> String {
    let spaces: String = error.text.chars().take(error.at).map(|c| if c == '\t' { c } else { ' ' }).collect();
    format!("{}\n  {spaces}^", error.text)
}

/// The stage as text, its files in `spill_dir`.
fn inside(stage: &Stage, spill_dir: Option<&Path>) -> Result<String, String> {
    let method = stage.method();
    let mut given: Vec<(&str, String)> =
        stage.arguments().given().map(|(name, value)| (name, value.to_owned())).collect();
    for parameter in method.parameters.iter().filter(|parameter| parameter.kind == ParameterKind::Text) {
        let (name, value) = (parameter.name, stage.arguments().text(parameter.name));
        if value != parameter.default {
            return Err(format!(
                "kv: '{name}' of {} names a file, which a request must not: leave it out",
                method.name
            ));
        }
        if name != "path" {
            continue;
        }
        let Some(folder) = spill_dir else {
            // Where the method needs no folder, as its other parameters are, it refuses to be given one.
            if written(method.name, &with_path(&given, Path::new("/"))).is_ok() {
                return Err(format!(
                    "kv: {} keeps keys and values in a file, and this server has no folder for it: it needs the option spill-dir",
                    method.name
                ));
            }
            continue;
        };
        let placed = with_path(&given, folder);
        if written(method.name, &placed).is_ok() {
            given = placed;
        }
    }
    Ok(text(method.name, &given))
}

fn with_path<'a>(given: &[(&'a str, String)], folder: &Path) -> Vec<(&'a str, String)> {
    let mut placed = given.to_vec();
    placed.push(("path", folder.to_string_lossy().into_owned()));
    placed
}

fn written(method: &str, given: &[(&str, String)]) -> Result<Pipeline, kvik_kv::pipeline::PipelineError> {
    Pipeline::parse(&text(method, given))
}

fn text(method: &str, given: &[(&str, String)]) -> String {
    let given: Vec<String> = given.iter().map(|(name, value)| format!("{name}={value}")).collect();
    if given.is_empty() { method.to_owned() } else { format!("{method}({})", given.join(",")) }
}

/// Says what is wrong with a folder for files of methods, if anything: its name must be one that pipelines can write.
pub fn check_spill_dir(folder: &Path) -> Result<(), String> {
    let name = folder.to_str().ok_or("spill-dir must be valid UTF-8")?;
    if name.contains(['(', ')', ',', '=', '+']) || name.trim() != name {
        return Err(format!("spill-dir {name}: the path must not contain ( ) , = + or spaces at its ends"));
    }
    if !folder.is_dir() {
        return Err(format!("spill-dir {name}: there is no such folder; make it first"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(text: &str, spill_dir: Option<&str>) -> String {
        let error = from_request(text, spill_dir.map(Path::new)).unwrap_err();
        assert_eq!((error.status.as_u16(), error.param.as_deref()), (400, Some("kv")));
        error.message
    }

    #[test]
    fn the_wrong_character_is_pointed_at() {
        let message = refusal("snapkv(budget=512)+nothing", None);
        assert!(message.ends_with("  snapkv(budget=512)+nothing\n                     ^"), "{message}");
        assert!(message.contains("(character 19)"), "{message}");
    }

    #[test]
    fn what_is_endless_is_not_shown() {
        assert!(refusal(&"kivi+".repeat(100_000), None).len() < 100);
    }

    #[test]
    fn files_are_the_servers_to_choose() {
        for text in ["tier(path=/etc)", "duo(gates=/etc/passwd)", "shadowkv(values=file,path=/root)"] {
            assert!(refusal(text, Some("/tmp")).contains("must not"), "{text}");
        }
        assert!(refusal("tier", None).contains("spill-dir"));
        assert!(refusal("shadowkv(values=file)", None).contains("spill-dir"));
        let placed = |text: &str| from_request(text, Some(Path::new("/var/x"))).unwrap().to_string();
        assert_eq!(placed("tier(ram=1MiB)"), "tier(ram=1MiB,path=/var/x)");
        assert_eq!(placed("shadowkv"), "shadowkv");
    }

    #[test]
    fn other_pipelines_stay_as_they_are() {
        for text in ["full", "snapkv(budget=512)+kivi(bits=2)", "shadowkv", "duo(full=0.25)"] {
            let asked = Pipeline::parse(text).unwrap();
            assert_eq!(from_request(text, None).unwrap(), asked, "{text}");
        }
    }
}
