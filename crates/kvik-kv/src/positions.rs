//! Which positions attention sees the rows at that a method kept.

use crate::{Arguments, KvShape, Parameter, ParameterKind};

/// The parameter of methods that evict while decoding.
pub const POSITIONS: Parameter = Parameter {
    name: "positions",
    kind: ParameterKind::Choice(&["original", "slot"]),
    default: "original",
    about: "where rows stand: where they stood in the text, or one after the other in the cache",
};

/// True if rows are to stand one after the other in the cache, by [`OpenCache::close_gaps`](crate::OpenCache::close_gaps).
///
/// # Errors
/// A sentence, if the model does not rotate keys.
pub fn by_slot(arguments: &Arguments, shape: &KvShape) -> Result<bool, String> {
    let by_slot = arguments.text(POSITIONS.name) == "slot";
    if by_slot && shape.full_layers().any(|layer| shape.rotary[layer].is_none()) {
        return Err(
            "positions=slot turns keys to other positions, and this model does not rotate its keys: use positions=original"
                .to_owned(),
        );
    }
    Ok(by_slot)
}
