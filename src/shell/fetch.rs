//! Draft.
use crate::engine::StartingPictures;
use crate::job::{Fault, JobSpec, Tenant};
use super::store::Store;
/// Draft.
#[derive(Clone, Debug)]
pub struct Fetcher { pub(crate) store: Store }
impl Fetcher {
    /// Draft.
    pub async fn starting_pictures(&self, _tenant: &Tenant, _spec: &JobSpec) -> Result<StartingPictures, Fault> {
        let _ = &self.store;
        Ok(StartingPictures::default())
    }
}
