//! Changes of the styles of projects.

use domain::style::Style;

use super::Api;
use super::access::Caller;
use super::problem::Problem;

impl Api {
    /// Sets the style of a project for its later jobs; its earlier style is replaced.
    pub(crate) async fn set_style(&self, caller: Caller, project_id: i64, style: &Style) -> Result<(), Problem> {
        let text = serde_json::to_string(style).expect("a style serialises");
        self.record(caller, "set_style", None, Some(format!("project {project_id}: {text}"))).await?;
        Ok(self.store.save_project_style(project_id, style).await?)
    }

    /// Removes the style of a project. Returns whether it had one.
    pub(crate) async fn clear_style(&self, caller: Caller, project_id: i64) -> Result<bool, Problem> {
        self.record(caller, "clear_style", None, Some(format!("project {project_id}"))).await?;
        Ok(self.store.clear_project_style(project_id).await?)
    }
}
