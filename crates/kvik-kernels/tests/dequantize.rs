//! Decoding of every stored format, bit by bit against the reference package (see `tools/goldens/quant_goldens.py`).

use std::{fs, path::Path};

use kvik_kernels::quant::{TensorType, dequantize};

#[test]
fn every_format_decodes_as_the_reference_does() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
    for ty in TensorType::ALL.into_iter().filter(|&ty| ty != TensorType::F32) {
        let golden = fs::read(folder.join(format!("{ty}.bin").to_lowercase())).unwrap();
        let (blocks, rest) = golden.split_first_chunk::<4>().unwrap();
        let elements = u32::from_le_bytes(*blocks) as usize * ty.block_len();
        let (data, expected) = rest.split_at(ty.bytes_for(elements).unwrap());
        let expected: Vec<u32> =
            expected.as_chunks::<4>().0.iter().map(|&bits| u32::from_le_bytes(bits)).collect();
        assert_eq!(expected.len(), elements, "{ty}");

        let mut decoded = vec![0.0; elements];
        dequantize(ty, data, &mut decoded);
        for (i, (value, bits)) in decoded.iter().zip(expected).enumerate() {
            assert_eq!(value.to_bits(), bits, "{ty}, element {i}: {value} is not {}", f32::from_bits(bits));
        }
    }
}

#[test]
fn f32_decodes_to_itself() {
    let values = [1.0f32, -0.0, f32::MIN_POSITIVE, f32::MAX];
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    let mut decoded = [0.0; 4];
    dequantize(TensorType::F32, &bytes, &mut decoded);
    assert_eq!(decoded.map(f32::to_bits), values.map(f32::to_bits));
}
