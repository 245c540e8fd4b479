//! Which files of a hub repository make up the model that was asked for.
//!
//! With a file name: that file, or the one GGUF file that the name is a part of (`owner/name:q8_0`). Without: the
//! GGUF file with the best ratio of quality to size, or else the safetensors with configuration and tokenizer.

use serde::Deserialize;

use super::hub::HubError;
use crate::models::{HubModel, closest, is_inside};

/// A repository at one commit, as the hub's API tells it.
#[derive(Debug, Deserialize)]
pub(super) struct Listing {
    pub(super) sha: String,
    pub(super) siblings: Vec<RemoteFile>,
}

#[derive(Debug, Deserialize)]
pub(super) struct RemoteFile {
    #[serde(rename = "rfilename")]
    pub(super) path: String,
    pub(super) size: u64,
    pub(super) lfs: Option<LargeFile>,
}

#[derive(Debug, Deserialize)]
pub(super) struct LargeFile {
    pub(super) sha256: String,
}

/// Which files to fetch, and what the model's path is inside the repository's folder: a file, or "" for the folder.
pub(super) struct Choice<'a> {
    pub(super) files: Vec<&'a RemoteFile>,
    pub(super) model: String,
}

/// Picks the files of a repository that `model` asks for.
pub(super) fn choose<'a>(listing: &'a Listing, model: &HubModel) -> Result<Choice<'a>, HubError> {
    let repository = format!("{}/{}", model.owner, model.name);
    let files: Vec<&RemoteFile> = listing.siblings.iter().filter(|file| is_inside(&file.path)).collect();
    let one = |file: &'a RemoteFile| Ok(Choice { files: vec![file], model: file.path.clone() });
    let mut ggufs: Vec<&RemoteFile> =
        files.iter().copied().filter(|file| is_model_gguf(&file.path)).collect();
    ggufs.sort_by(|a, b| gguf_rank(&a.path).cmp(&gguf_rank(&b.path)).then_with(|| a.path.cmp(&b.path)));

    if let Some(wanted) = &model.file {
        if let Some(file) = files.iter().find(|file| file.path == *wanted) {
            return one(file);
        }
        let part = wanted.to_lowercase();
        let fitting: Vec<_> = ggufs.iter().filter(|file| file.path.to_lowercase().contains(&part)).collect();
        let paths = |files: &[&RemoteFile]| files.iter().map(|file| file.path.clone()).collect::<Vec<_>>();
        return match fitting[..] {
            [file] => one(file),
            [] => {
                let similar = closest(wanted, ggufs.iter().map(|file| file.path.as_str()));
                let suggestions = similar.into_iter().map(str::to_owned).collect();
                Err(HubError::NoSuchFile {
                    repository,
                    file: wanted.clone(),
                    suggestions,
                    files: paths(&ggufs),
                })
            }
            _ => {
                let files = fitting.iter().map(|file| file.path.clone()).collect();
                Err(HubError::Ambiguous { repository, file: wanted.clone(), files })
            }
        };
    }
    if let [best, others @ ..] = &ggufs[..] {
        if !others.is_empty() {
            let others: Vec<&str> = others.iter().map(|file| file.path.as_str()).collect();
            eprintln!("kvik: taking {} of {repository}; it also has {}", best.path, others.join(", "));
            eprintln!("kvik: name another one as {repository}:FILE");
        }
        return one(best);
    }
    let files = safetensors_files(&files);
    if files.is_empty() {
        Err(HubError::NoModel { repository })
    } else {
        Ok(Choice { files, model: String::new() })
    }
}

/// A GGUF file that is a whole language model: no piece of a split one, no projector or importance matrix.
fn is_model_gguf(path: &str) -> bool {
    let name = path.to_lowercase();
    name.ends_with(".gguf") && !["-of-0", "mmproj", "imatrix"].iter().any(|part| name.contains(part))
}

/// How late a quantisation comes in Kvik's choice: small with little loss first, full precision last.
fn gguf_rank(path: &str) -> usize {
    const ORDER: [&str; 12] = [
        "q4_k_m", "q4_k_s", "q5_k_m", "q5_k_s", "q4_1", "q4_0", "q6_k", "q8_0", "q5_1", "q5_0", "bf16", "f16",
    ];
    let name = path.to_lowercase();
    ORDER.iter().position(|quantisation| name.contains(quantisation)).unwrap_or(ORDER.len())
}

/// Configuration, tokenizer and weights of a safetensors model; empty if the repository has none.
fn safetensors_files<'a>(files: &[&'a RemoteFile]) -> Vec<&'a RemoteFile> {
    const BESIDE: [&str; 7] = [
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "chat_template.jinja",
        "model.safetensors.index.json",
    ];
    let is_weights = |file: &RemoteFile| file.path.ends_with(".safetensors") && !file.path.contains('/');
    // Some repositories carry the same weights twice; the library's own names come first.
    let has_usual_name = files.iter().any(|file| is_weights(file) && file.path.starts_with("model"));
    let weights = |file: &RemoteFile| is_weights(file) && (!has_usual_name || file.path.starts_with("model"));
    let complete =
        files.iter().any(|file| file.path == "config.json") && files.iter().any(|file| weights(file));
    let wanted = |file: &&&RemoteFile| weights(file) || BESIDE.contains(&file.path.as_str());
    if complete { files.iter().filter(wanted).copied().collect() } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listing(paths: &[&str]) -> Listing {
        let siblings =
            paths.iter().map(|path| RemoteFile { path: path.to_string(), size: 1, lfs: None }).collect();
        Listing { sha: "c0ffee".into(), siblings }
    }

    fn chosen(paths: &[&str], file: Option<&str>) -> Result<(String, usize), HubError> {
        let model = HubModel { owner: "o".into(), name: "n".into(), file: file.map(str::to_owned) };
        let listing = listing(paths);
        choose(&listing, &model).map(|choice| (choice.model, choice.files.len()))
    }

    const MANY: [&str; 5] =
        ["x.F16.gguf", "x.Q8_0.gguf", "x.Q4_K_M.gguf", "mmproj-x.gguf", "x-00001-of-00002.gguf"];

    #[test]
    fn the_most_suitable_gguf_is_taken() {
        assert_eq!(chosen(&MANY, None).unwrap(), ("x.Q4_K_M.gguf".into(), 1));
        assert_eq!(chosen(&MANY, Some("q8_0")).unwrap(), ("x.Q8_0.gguf".into(), 1));
        assert_eq!(chosen(&MANY, Some("x.F16.gguf")).unwrap(), ("x.F16.gguf".into(), 1));
        assert!(
            matches!(chosen(&MANY, Some("x.")), Err(HubError::Ambiguous { files, .. }) if files.len() == 3)
        );
        let error = chosen(&MANY, Some("x.Q4_K_S.gguf")).unwrap_err();
        assert!(error.to_string().contains("did you mean x.Q4_K_M.gguf"), "{error}");
    }

    #[test]
    fn safetensors_come_with_configuration_and_tokenizer() {
        let repository = [
            "README.md",
            "config.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "model.safetensors.index.json",
            "consolidated.safetensors",
            "onnx/model.safetensors",
        ];
        assert_eq!(chosen(&repository, None).unwrap(), (String::new(), 5));
        assert!(matches!(chosen(&["model.safetensors"], None), Err(HubError::NoModel { .. })));
    }

    #[test]
    fn paths_that_leave_the_folder_are_not_even_seen() {
        assert!(matches!(chosen(&["../../x.gguf", "/x.gguf"], None), Err(HubError::NoModel { .. })));
    }
}
