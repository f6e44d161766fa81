//! The composefs repository on disk: objects, splitstreams, images, refs, OCI content.
