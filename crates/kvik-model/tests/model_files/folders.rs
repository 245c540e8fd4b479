//! Models that are folders: which files are chosen, sharded models, and folders that are wrong.

use std::{fs, path::Path};

use kvik_model::{Checkpoint, checkpoint::Format};
use safetensors::{Dtype, tensor::TensorView};
use tempfile::TempDir;

use crate::{explore, gguf_writer::GgufWriter};

const CONFIG: &str = r#"{
    "hidden_size": 576, "rope_theta": 10000, "tie_word_embeddings": true, "quantization": null,
    "architectures": ["LlamaForCausalLM"], "eos_token_id": [1, 106],
    "rope_scaling": {"factor": 8.0, "inner": {"low.freq": -1}}
}"#;

struct Folder(TempDir);

impl Folder {
    fn new(files: &[(&str, Vec<u8>)]) -> Self {
        let folder = Self(TempDir::new().unwrap());
        for (name, bytes) in files {
            fs::write(folder.path().join(name), bytes).unwrap();
        }
        folder
    }

    fn path(&self) -> &Path {
        self.0.path()
    }

    fn open(&self) -> Result<Checkpoint, String> {
        explore(self.path())
    }

    #[track_caller]
    fn assert_refused(&self, parts: &[&str]) {
        let message = self.open().unwrap_err();
        for part in parts {
            assert!(message.contains(part), "{message:?} does not say {part:?}");
        }
    }
}

fn config() -> (&'static str, Vec<u8>) {
    ("config.json", CONFIG.as_bytes().to_vec())
}

fn shard(name: &str, value: f32) -> Vec<u8> {
    let data = value.to_le_bytes();
    safetensors::serialize([(name, TensorView::new(Dtype::F32, vec![1], &data).unwrap())], None).unwrap()
}

fn index(entries: &[(&str, &str)]) -> (&'static str, Vec<u8>) {
    let map: Vec<String> = entries.iter().map(|(tensor, file)| format!("{tensor:?}: {file:?}")).collect();
    let json = format!(r#"{{"metadata": {{"total_size": 8}}, "weight_map": {{{}}}}}"#, map.join(", "));
    ("model.safetensors.index.json", json.into_bytes())
}

#[test]
fn config_json_reads_like_gguf_keys() {
    let folder = Folder::new(&[config(), ("model.safetensors", shard("a", 1.0))]);
    let checkpoint = folder.open().unwrap();
    assert_eq!((checkpoint.format(), checkpoint.folder()), (Format::Safetensors, Some(folder.path())));
    let metadata = checkpoint.metadata();
    assert_eq!(metadata.require::<usize>("hidden_size"), Ok(576));
    assert_eq!(metadata.require::<f32>("rope_theta"), Ok(10000.0));
    assert_eq!(metadata.require::<bool>("tie_word_embeddings"), Ok(true));
    assert_eq!(metadata.find::<bool>("quantization"), Ok(None));
    assert_eq!(metadata.require::<Vec<&str>>("architectures"), Ok(vec!["LlamaForCausalLM"]));
    assert_eq!(metadata.require::<Vec<u32>>("eos_token_id"), Ok(vec![1, 106]));
    assert_eq!(metadata.require::<f32>("rope_scaling.factor"), Ok(8.0));
    assert_eq!(metadata.require::<i32>("rope_scaling.inner.low.freq"), Ok(-1));
    assert!(metadata.contains("rope_scaling") && !metadata.contains("rope_scaling.inner.low"));
    assert!(metadata.require::<u32>("rope_scaling.factor").is_err());
    let keys: Vec<String> = metadata.iter().map(|(key, _)| key.into_owned()).collect();
    assert_eq!(
        keys,
        [
            "hidden_size",
            "rope_theta",
            "tie_word_embeddings",
            "architectures",
            "eos_token_id",
            "rope_scaling.factor",
            "rope_scaling.inner.low.freq"
        ]
    );
}

#[test]
fn a_file_inside_the_folder_opens_as_well() {
    let folder = Folder::new(&[config(), ("weights", shard("a", 1.0))]);
    let checkpoint = explore(&folder.path().join("weights")).unwrap();
    assert_eq!(checkpoint.folder(), Some(folder.path()));
    assert_eq!(checkpoint.file_bytes(), shard("a", 1.0).len() as u64);
}

#[test]
fn a_sharded_model_is_one_model() {
    let shards = [("x-1.safetensors", shard("a", 1.0)), ("x-2.safetensors", shard("b", 2.0))];
    let [first, second] = shards.clone();
    let map = index(&[("b", "x-2.safetensors"), ("a", "x-1.safetensors")]);
    let checkpoint = Folder::new(&[config(), first, second, map]).open().unwrap();
    assert_eq!(checkpoint.tensor("a").unwrap().to_f32(), Some(vec![1.0]));
    assert_eq!(checkpoint.tensor("b").unwrap().to_f32(), Some(vec![2.0]));
    assert_eq!(checkpoint.file_bytes(), shards.iter().map(|(_, bytes)| bytes.len() as u64).sum::<u64>());

    let [first, _] = shards.clone();
    Folder::new(&[config(), first, index(&[("a", "x-1.safetensors"), ("b", "x-2.safetensors")])])
        .assert_refused(&["x-2.safetensors", "No such file"]);
    let [first, second] = shards;
    Folder::new(&[config(), first, second, index(&[("a", "x-2.safetensors")])]).assert_refused(&[
        "x-2.safetensors",
        "lacks tensor \"a\"",
        "download the model again",
    ]);
}

#[test]
fn an_index_cannot_reach_outside_its_folder() {
    let outside = Folder::new(&[("secret.safetensors", shard("a", 1.0))]);
    let absolute = outside.path().join("secret.safetensors");
    for name in ["../x.safetensors", absolute.to_str().unwrap(), "sub/x", "..", ".", "", "./x", "a\\b", "x/"]
    {
        Folder::new(&[config(), index(&[("a", name)])])
            .assert_refused(&["outside the model's folder", "do not trust"]);
    }
}

#[test]
fn the_one_gguf_file_of_a_folder_is_the_model() {
    let gguf = || GgufWriter::new(3).u32("a", 1).bytes();
    let folder = Folder::new(&[("some.gguf", gguf()), ("README.md", vec![])]);
    let checkpoint = folder.open().unwrap();
    assert_eq!((checkpoint.format(), checkpoint.folder()), (Format::Gguf { version: 3 }, None));
    Folder::new(&[("b.gguf", gguf()), ("a.gguf", gguf())])
        .assert_refused(&["several", r#""a.gguf", "b.gguf""#]);
}

#[test]
fn incomplete_folders_are_named() {
    Folder::new(&[]).assert_refused(&["holds no model"]);
    Folder::new(&[config()]).assert_refused(&["holds no model"]);
    let lonely = Folder::new(&[("model.safetensors", shard("a", 1.0))]);
    lonely.assert_refused(&["holds no model", "config.json"]);
    let message = explore(&lonely.path().join("model.safetensors")).unwrap_err();
    assert!(message.contains("config.json") && message.contains("No such file"), "{message}");
    let message = explore(&lonely.path().join("absent.gguf")).unwrap_err();
    assert!(message.contains("absent.gguf") && message.contains("No such file"), "{message}");

    let model = || ("model.safetensors", shard("a", 1.0));
    Folder::new(&[("config.json", b"[]".to_vec()), model()])
        .assert_refused(&["config.json", "expected a map"]);
    Folder::new(&[("config.json", b"{\"a\": ".to_vec()), model()]).assert_refused(&["config.json", "line 1"]);
    Folder::new(&[("config.json", vec![b' '; 3 << 20]), model()]).assert_refused(&["config.json", "3145728"]);
    let deep = [b"{\"a\":".to_vec(), vec![b'['; 100_000]].concat();
    Folder::new(&[("config.json", deep), model()]).assert_refused(&["config.json", "recursion limit"]);
    let no_map = ("model.safetensors.index.json", b"{}".to_vec());
    Folder::new(&[config(), no_map]).assert_refused(&["index.json", "weight_map"]);
}
