//! Bodies of command messages.

use std::sync::LazyLock;

use domain::command::Command;
use domain::prompt;
use domain::rules::Rules;
use stability_client::{CFG_SCALE, Engine, STEPS, StylePreset};

use crate::assert_valid_message;

/// The same rules as the worker's.
static RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
    engines: Engine::ALL.iter().map(Engine::id).collect(),
    engines_without_fast_upscaler: vec!["core"],
    style_presets: StylePreset::ALL.iter().map(|preset| preset.as_str()).collect(),
    cfg_scale: CFG_SCALE,
    steps: STEPS,
});

/// Parses bytes as a command.
///
/// A valid command must be within the contract's ranges and must be unchanged after serialising and parsing it again.
/// An invalid command must have at least one violation, each with a valid message.
pub fn check_command(bytes: &[u8]) {
    match Command::parse(bytes, &RULES) {
        Ok(command) => {
            assert!(command.project_id > 0);
            assert!((1..=200).contains(&command.image_descriptions.len()));
            for description in &command.image_descriptions {
                assert!((1..=2_000).contains(&description.chars().count()));
                assert!(description == description.trim() && !description.contains('\0'));
                let modifiers = command.config.style().style_modifiers;
                if let Ok(composed) = prompt::compose(description, modifiers.as_deref(), 2_000) {
                    assert!(composed.text.chars().count() <= 2_000);
                }
            }
            let config = &command.config;
            assert!(config.max_concurrent.is_none_or(|number| (1..=6).contains(&number)));
            assert!(config.steps.is_none_or(|steps| STEPS.contains(&steps)));
            assert!(config.cfg_scale.is_none_or(|scale| CFG_SCALE.contains(&scale)));
            assert!((0.0..=1.0).contains(&config.min_success_rate()));
            assert!(config.max_cost_usd.is_none_or(|cost| (0.0..=1_000_000.0).contains(&cost)));
            let written = serde_json::to_vec(&command).expect("a command is serialisable");
            let reparsed = Command::parse(&written, &RULES).expect("a serialised command is parsed");
            assert_eq!(reparsed, command);
        }
        Err(invalid) => {
            assert!(!invalid.violations.is_empty());
            for violation in &invalid.violations {
                assert_valid_message(violation);
            }
        }
    }
}
