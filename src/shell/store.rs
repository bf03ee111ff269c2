//! Images in object storage: `object_store` chosen by URL, presigned URLs where the store can sign.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures_util::{StreamExt, TryStreamExt};
use object_store::aws::AmazonS3Builder;
use object_store::azure::MicrosoftAzureBuilder;
use object_store::gcp::GoogleCloudStorageBuilder;
use object_store::local::LocalFileSystem;
use object_store::path::Path;
use object_store::signer::Signer;
use object_store::{
    Attribute, Attributes, ObjectStore, ObjectStoreExt, ObjectStoreScheme, PutMode, PutOptions, PutPayload, TagSet,
};
use url::Url;

use crate::job::{Fault, FaultCode};

use super::bus::chain;
use super::config::StoreOptions;

/// What checkpoints are tagged with: rules of S3 go by prefixes, which theirs have in the middle, or by tags.
const CHECKPOINT_TAG: (&str, &str) = ("darkroom", "checkpoint");

/// Where the images of one deployment are.
#[derive(Clone, Debug)]
pub struct Store {
    objects: Arc<dyn ObjectStore>,
    signer: Option<Arc<dyn Signer>>,
    url: Url,
    prefix: Path,
    url_expires: Duration,
}

/// What [`Store::find`] found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// No such key.
    Nothing,
    /// More than was asked for; nothing was read.
    TooLarge {
        /// Its size.
        bytes: u64,
    },
    /// The whole object.
    Object(Bytes),
}

/// Why a store cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Not a URL.
    #[error("the store {text:?} is not a URL such as file:///var/darkroom or s3://bucket/prefix")]
    NotAUrl {
        /// What was given.
        text: String,
        /// Why.
        #[source]
        source: url::ParseError,
    },
    /// The directory of a `file:` store.
    #[error("the store's directory {path} cannot be made")]
    Directory {
        /// Which.
        path: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// object_store's word.
    #[error("the store {url} cannot be used")]
    Unusable {
        /// Which.
        url: String,
        /// Why.
        #[source]
        source: object_store::Error,
    },
}

/// Where a `file:` URL leads to; `None` for other URLs.
pub fn local_path(url: &str) -> Option<PathBuf> {
    Url::parse(url).ok().filter(|url| url.scheme() == "file")?.to_file_path().ok()
}

/// Opens the store. Nothing is read or written but the directory of a `file:` store.
///
/// # Errors
/// [`StoreError`].
pub fn open(options: &StoreOptions) -> Result<Store, StoreError> {
    let url =
        Url::parse(&options.store).map_err(|source| StoreError::NotAUrl { text: options.store.clone(), source })?;
    let unusable = |source| StoreError::Unusable { url: url.to_string(), source };
    let (scheme, prefix) = ObjectStoreScheme::parse(&url).map_err(|error| unusable(error.into()))?;
    let (objects, signer): (Arc<dyn ObjectStore>, Option<Arc<dyn Signer>>) = match scheme {
        ObjectStoreScheme::Local => {
            let path = url.to_file_path().unwrap_or_else(|()| url.path().into());
            let failed = |source| StoreError::Directory { path: path.display().to_string(), source };
            std::fs::create_dir_all(&path).map_err(failed)?;
            // fsync: what was acknowledged must survive a power cut.
            let local = LocalFileSystem::new_with_prefix(&path).map_err(unusable)?.with_fsync(true);
            return Ok(Store {
                objects: Arc::new(local),
                signer: None,
                url,
                prefix: Path::default(),
                url_expires: options.url_expires,
            });
        }
        ObjectStoreScheme::AmazonS3 => {
            let store = Arc::new(AmazonS3Builder::from_env().with_url(url.as_str()).build().map_err(unusable)?);
            (Arc::clone(&store) as Arc<dyn ObjectStore>, Some(store))
        }
        ObjectStoreScheme::GoogleCloudStorage => {
            let builder = GoogleCloudStorageBuilder::from_env().with_url(url.as_str());
            let store = Arc::new(builder.build().map_err(unusable)?);
            (Arc::clone(&store) as Arc<dyn ObjectStore>, Some(store))
        }
        ObjectStoreScheme::MicrosoftAzure => {
            let store = Arc::new(MicrosoftAzureBuilder::from_env().with_url(url.as_str()).build().map_err(unusable)?);
            (Arc::clone(&store) as Arc<dyn ObjectStore>, Some(store))
        }
        // Memory and plain HTTP, and what later versions add.
        ObjectStoreScheme::Memory | ObjectStoreScheme::Http | _ => {
            let (store, _) = object_store::parse_url(&url).map_err(unusable)?;
            (Arc::from(store), None)
        }
    };
    Ok(Store { objects, signer, url, prefix, url_expires: options.url_expires })
}

impl Store {
    /// The URL that it was opened by.
    pub fn url(&self) -> &Url {
        &self.url
    }

    /// Stores an object that is a function of its key: if it is there already with these bytes, all is well.
    ///
    /// # Errors
    /// A `Retry` fault with code `store_failed`.
    pub async fn put(&self, key: &str, bytes: Bytes, content_type: &'static str) -> Result<(), Fault> {
        self.put_tagged(key, bytes, content_type, TagSet::default()).await
    }

    /// The same of a checkpoint, with the tag that a bucket's rule can remove it by; `AWS_DISABLE_TAGGING=true` for a store
    /// that refuses tags.
    ///
    /// # Errors
    /// As [`Self::put`].
    pub async fn put_checkpoint(&self, key: &str, bytes: Bytes) -> Result<(), Fault> {
        let mut tags = TagSet::default();
        tags.push(CHECKPOINT_TAG.0, CHECKPOINT_TAG.1);
        self.put_tagged(key, bytes, "application/octet-stream", tags).await
    }

    async fn put_tagged(&self, key: &str, bytes: Bytes, content_type: &'static str, tags: TagSet) -> Result<(), Fault> {
        let path = self.path(key);
        let mut attributes = Attributes::new();
        attributes.insert(Attribute::ContentType, content_type.into());
        let mut options = PutOptions { mode: PutMode::Create, attributes, tags, ..PutOptions::default() };
        loop {
            let payload = PutPayload::from_bytes(bytes.clone());
            match self.objects.put_opts(&path, payload, options.clone()).await {
                Ok(_) => return Ok(()),
                Err(object_store::Error::AlreadyExists { .. }) => {
                    // An earlier attempt was here. Other bytes than ours are a torn or foreign object.
                    if self.get(key).await? == bytes {
                        return Ok(());
                    }
                    options.mode = PutMode::Overwrite;
                }
                // A store that cannot keep the media type, or has no If-None-Match, gets the plain write.
                Err(object_store::Error::NotImplemented { .. } | object_store::Error::NotSupported { .. })
                    if options != PutOptions::default() =>
                {
                    options = if options.attributes.is_empty() {
                        PutOptions::default()
                    } else {
                        PutOptions { attributes: Attributes::new(), ..options }
                    };
                }
                Err(error) => return Err(fault(&error)),
            }
        }
    }

    /// Reads an object.
    ///
    /// # Errors
    /// A `Retry` fault with code `store_failed`.
    pub async fn get(&self, key: &str) -> Result<Bytes, Fault> {
        let found = self.objects.get(&self.path(key)).await.map_err(|error| fault(&error))?;
        found.bytes().await.map_err(|error| fault(&error))
    }

    /// Reads an object that somebody else put there, if it exists and is not too large.
    ///
    /// # Errors
    /// A `Retry` fault with code `store_failed`.
    pub async fn find(&self, key: &str, bytes_max: usize) -> Result<Found, Fault> {
        let found = match self.objects.get(&self.path(key)).await {
            Ok(found) => found,
            Err(object_store::Error::NotFound { .. }) => return Ok(Found::Nothing),
            Err(error) => return Err(fault(&error)),
        };
        if found.meta.size > bytes_max as u64 {
            return Ok(Found::TooLarge { bytes: found.meta.size });
        }
        found.bytes().await.map(Found::Object).map_err(|error| fault(&error))
    }

    /// Removes an object; one that is not there is no error.
    ///
    /// # Errors
    /// A `Retry` fault with code `store_failed`.
    pub async fn delete(&self, key: &str) -> Result<(), Fault> {
        match self.objects.delete(&self.path(key)).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(fault(&error)),
        }
    }

    /// Removes all objects whose keys begin with `prefix`, a folder.
    ///
    /// # Errors
    /// A `Retry` fault with code `store_failed`.
    pub async fn delete_all(&self, prefix: &str) -> Result<(), Fault> {
        let found = self.objects.list(Some(&self.path(prefix))).map_ok(|found| found.location).boxed();
        let deleted = self.objects.delete_stream(found).try_for_each(|_| std::future::ready(Ok(()))).await;
        match deleted {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(error) => Err(fault(&error)),
        }
    }

    /// Where an object can be read: presigned where the store can sign.
    ///
    /// # Errors
    /// A `Retry` fault with code `store_failed`.
    pub async fn url_of(&self, key: &str) -> Result<String, Fault> {
        if let Some(signer) = &self.signer {
            let signed = signer.signed_url(object_store::signer::Method::GET, &self.path(key), self.url_expires).await;
            return signed.map(String::from).map_err(|error| fault(&error));
        }
        let base = self.url.as_str().trim_end_matches('/');
        Ok(format!("{base}/{key}"))
    }

    /// The objects themselves, for who reads more than whole ones.
    pub(super) fn objects(&self) -> &Arc<dyn ObjectStore> {
        &self.objects
    }

    /// What the store calls a key.
    pub(super) fn path(&self, key: &str) -> Path {
        self.prefix.parts().chain(Path::from(key).parts()).collect()
    }
}

fn fault(error: &object_store::Error) -> Fault {
    Fault::retry(FaultCode::StoreFailed, chain(error))
}
