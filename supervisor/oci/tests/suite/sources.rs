//! Layouts in folders and tars, platforms, and what is refused before a layer is fetched.
//!
//! In: images written by hand. Out: what `resolve` and `fetch` say.

use std::{fs, path::Path};

use molt_core::{code::Code, ids::ImageRef};
use molt_oci::{Client, Limits, Platform, Registries, need};

use crate::common::{CONFIG, GZIP, INDEX, Image, MANIFEST, Packed, Place, TAR, Tar, Told, ZSTD, digest, packed};

fn layers() -> Vec<Packed> {
    let tars = [Tar::new().file("a", "1").end(), Tar::new().file("b", "2").end(), Tar::new().file("c", "3").end()];
    let id = |tar: &[u8]| digest(tar).to_string();
    vec![
        packed(&tars[0]),
        (zstd::encode_all(tars[1].as_slice(), 1).unwrap(), ZSTD, id(&tars[1])),
        (tars[2].clone(), TAR, id(&tars[2])),
    ]
}

async fn pull(place: &Place, reference: &str) -> Result<usize, molt_oci::Error> {
    let (resolved, fetched) = place.pull_with(reference, &Registries::default(), Limits::default()).await?;
    assert_eq!(resolved.image.cmd, ["/bin/app"]);
    assert!(place.store.has_blob(&resolved.manifest_digest) && place.store.has_blob(&resolved.config_digest));
    Ok(fetched.layers.len())
}

fn tar_of(dir: &Path) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    builder.append_dir_all(".", dir).unwrap();
    builder.into_inner().unwrap()
}

#[tokio::test]
async fn layouts_are_read_from_a_folder_and_from_a_tar() {
    let place = Place::new();
    let dir = place.path("layout");
    Image::new(&layers()).layout(&dir);
    fs::write(place.path("layout.tar"), tar_of(&dir)).unwrap();
    for reference in ["layout", "layout:v1", "layout.tar", "layout.tar:v1"] {
        assert_eq!(pull(&place, &format!("oci:{}/{reference}", place.dir.path().display())).await.unwrap(), 3);
    }
    for (reference, code) in [("layout:v2", Code::NotFound), ("missing", Code::NotFound), ("store", Code::NotFound)] {
        let error = pull(&place, &format!("oci:{}/{reference}", place.dir.path().display())).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
    }
    fs::write(place.path("x.tar.gz"), crate::common::gzip(&tar_of(&dir))).unwrap();
    let error = pull(&place, &format!("oci:{}/x.tar.gz", place.dir.path().display())).await.unwrap_err();
    assert_eq!(error.code(), Code::ManifestInvalid);
}

#[tokio::test]
async fn a_layout_is_not_left_by_a_link() {
    let place = Place::new();
    let dir = place.path("layout");
    let image = Image::new(&layers());
    image.layout(&dir);
    let blob = dir.join("blobs/sha256").join(digest(&image.manifest).hex());
    fs::rename(&blob, place.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(place.path("elsewhere"), &blob).unwrap();
    assert!(pull(&place, &format!("oci:{}", dir.display())).await.is_err());
}

#[tokio::test]
async fn the_platform_is_chosen_and_a_foreign_one_is_named() {
    let place = Place::new();
    let dir = place.path("layout");
    let native = Image::new(&layers());
    native.layout(&dir);
    let foreign = Image::with_config(&layers(), |config| config["architecture"] = "s390x".into());
    let of = |image: &Image, architecture: &str| {
        serde_json::json!({"mediaType": MANIFEST, "digest": digest(&image.manifest), "size": image.manifest.len(),
            "platform": {"os": "linux", "architecture": architecture}})
    };
    for blob in foreign.blobs.values().chain([&foreign.manifest]) {
        fs::write(dir.join("blobs/sha256").join(digest(blob).hex()), blob).unwrap();
    }
    let host = Platform::host().architecture;
    for (entries, code) in [
        (vec![of(&foreign, "s390x"), of(&native, &host)], None),
        (vec![of(&foreign, "s390x")], Some(Code::WrongPlatform)),
        // The index says one thing, the config another.
        (vec![of(&foreign, &host)], Some(Code::WrongPlatform)),
        (vec![], Some(Code::WrongPlatform)),
    ] {
        let index = serde_json::json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": entries}).to_string();
        fs::write(dir.join("blobs/sha256").join(digest(index.as_bytes()).hex()), &index).unwrap();
        let top = serde_json::json!({"schemaVersion": 2, "manifests": [
            {"mediaType": INDEX, "digest": digest(index.as_bytes()), "size": index.len()}]});
        fs::write(dir.join("index.json"), top.to_string()).unwrap();
        let result = pull(&place, &format!("oci:{}", dir.display())).await;
        assert_eq!(result.as_ref().err().map(molt_oci::Error::code), code, "{result:?}");
        if let (Err(error), true) = (result, entries.len() == 1) {
            assert!(error.to_string().contains("s390x"), "{error}");
        }
    }
}

#[tokio::test]
async fn counts_and_kinds_must_agree() {
    let place = Place::new();
    let mut lying = layers();
    lying[1].1 = GZIP;
    Image::new(&lying).layout(&place.path("kind"));
    Image::with_config(&layers(), |config| {
        config["rootfs"]["diff_ids"].as_array_mut().unwrap().pop();
    })
    .layout(&place.path("count"));
    for (name, code) in [("kind", Code::LayerInvalid), ("count", Code::ManifestInvalid)] {
        let error = pull(&place, &format!("oci:{}", place.path(name).display())).await.unwrap_err();
        assert_eq!(error.code(), code, "{error}");
        place.assert_clean();
    }
    assert!(!CONFIG.is_empty());
}

#[tokio::test]
async fn layers_that_are_there_are_not_fetched_and_too_large_ones_are_refused_first() {
    let place = Place::new();
    Image::new(&layers()).layout(&place.path("layout"));
    let reference: ImageRef = format!("oci:{}", place.path("layout").display()).parse().unwrap();
    let client = Client::new(&Registries::default(), Limits::default()).unwrap();
    let mut resolved = client.resolve(&reference, &Platform::host(), &()).await.unwrap();
    assert_eq!(need(&resolved, &place.store).layers_to_fetch, 3);
    let told = Told::default();
    client.fetch(&resolved, &place.store, &told).await.unwrap();
    assert_eq!(need(&resolved, &place.store).layers_to_fetch, 0);
    let again = client.fetch(&resolved, &place.store, &told).await.unwrap();
    assert_eq!((again.layers_fetched, again.bytes_fetched), (0, 0));
    assert_eq!(told.done.lock().unwrap().len(), 6);
    resolved.layers[0].diff_id = "sha256:".to_owned().parse().unwrap_or(molt_core::ids::DiffId(digest(b"new")));
    resolved.layers[0].size = 500 << 40;
    let error = client.fetch(&resolved, &place.store, &told).await.unwrap_err();
    assert_eq!(error.code(), Code::NoSpace);
    assert!(error.to_string().contains("molt gc") && error.to_string().contains("MiB"), "{error}");
}

#[test]
fn futures_can_move_between_threads() {
    fn send<T: Send>(_: T) {}
    let place = Place::new();
    let client = Client::new(&Registries::default(), Limits::default()).unwrap();
    let reference: ImageRef = "oci:/missing".parse().unwrap();
    send(client.resolve(&reference, &Platform::host(), &()));
    send(async {
        let resolved = client.resolve(&reference, &Platform::host(), &()).await?;
        client.fetch(&resolved, &place.store, &()).await
    });
}
