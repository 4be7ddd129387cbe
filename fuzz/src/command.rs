//! The body of a message.

use std::sync::LazyLock;

use domain::command::{Command, Rules};
use domain::prompt;
use stability_client::{CFG_SCALE, Engine, STEPS, StylePreset};

use crate::assert_sentence;

/// As the worker has them.
static RULES: LazyLock<Rules> = LazyLock::new(|| Rules {
    engines: Engine::ALL.iter().map(|engine| engine.id()).collect(),
    style_presets: StylePreset::ALL.iter().map(|preset| preset.as_str()).collect(),
    cfg_scale: CFG_SCALE,
    steps: STEPS,
});

/// Reads bytes as a command. A command keeps to the contract's ranges, and is the same when it is written and read again; of what is no
/// command each broken rule is named.
pub fn command(bytes: &[u8]) {
    match Command::parse(bytes, &RULES) {
        Ok(command) => {
            assert!(command.project_id > 0);
            assert!((1..=200).contains(&command.image_descriptions.len()));
            for description in &command.image_descriptions {
                assert!((1..=2_000).contains(&description.trim().chars().count()));
                let modifiers = command.config.style().style_modifiers;
                if let Ok(composed) = prompt::compose(description, modifiers.as_deref(), 2_000) {
                    assert!(composed.text.chars().count() <= 2_000);
                }
            }
            let written = serde_json::to_vec(&command).expect("a command is written");
            let again = Command::parse(&written, &RULES).expect("what was written is read");
            assert_eq!(serde_json::to_vec(&again).expect("a command is written"), written);
        }
        Err(invalid) => {
            assert!(!invalid.violations.is_empty());
            for violation in &invalid.violations {
                assert_sentence(violation);
            }
        }
    }
}
