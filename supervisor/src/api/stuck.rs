//! A connection whose peer takes nothing any more.
//!
//! In: any stream of bytes. Out: the same; a write that comes no further for too long ends it with an error. Must not: end
//! one whose peer is only slow, or one that was told to be patient.

use std::{
    io,
    pin::Pin,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    task::{Context, Poll, ready},
    time::Duration,
};

use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Sleep, sleep},
};

/// How long one call has been waiting; it begins anew with whatever got further.
#[derive(Debug, Default)]
struct Wait(Option<Pin<Box<Sleep>>>);

impl Wait {
    fn judge<T>(
        &mut self,
        limit: Duration,
        context: &mut Context<'_>,
        done: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if done.is_ready() {
            self.0 = None;
            return done;
        }
        ready!(self.0.get_or_insert_with(|| Box::pin(sleep(limit))).as_mut().poll(context));
        let why = format!("the peer has taken nothing for {} s", limit.as_secs());
        Poll::Ready(Err(io::Error::new(io::ErrorKind::TimedOut, why)))
    }
}

/// The connection.
#[derive(Debug)]
pub(super) struct Watched<S> {
    stream: S,
    limit: Duration,
    /// Set where a peer may stop reading for as long as it likes.
    patient: Arc<AtomicBool>,
    write: Wait,
    /// Flushing, and closing. Apart: a flush of what was written says nothing of a write that waits.
    flush: Wait,
}

impl<S> Watched<S> {
    /// Ends when a write waits for `limit`, unless it is to be patient by then.
    pub(super) fn new(stream: S, limit: Duration, patient: Arc<AtomicBool>) -> Self {
        Self { stream, limit, patient, write: Wait::default(), flush: Wait::default() }
    }

    fn written(&mut self, context: &mut Context<'_>, done: Poll<io::Result<usize>>) -> Poll<io::Result<usize>> {
        if done.is_ready() {
            self.flush = Wait::default();
        }
        if self.patient.load(Ordering::Relaxed) { done } else { self.write.judge(self.limit, context, done) }
    }

    fn flushed(&mut self, context: &mut Context<'_>, done: Poll<io::Result<()>>) -> Poll<io::Result<()>> {
        if self.patient.load(Ordering::Relaxed) { done } else { self.flush.judge(self.limit, context, done) }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Watched<S> {
    fn poll_read(mut self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, into)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Watched<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, data: &[u8]) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write(context, data);
        self.written(context, done)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let done = Pin::new(&mut self.stream).poll_write_vectored(context, data);
        self.written(context, done)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_flush(context);
        self.flushed(context, done)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let done = Pin::new(&mut self.stream).poll_shutdown(context);
        self.flushed(context, done)
    }
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        time::timeout,
    };

    use super::*;

    const LIMIT: Duration = Duration::from_millis(400);

    #[tokio::test]
    async fn a_write_that_comes_no_further_ends_the_connection() {
        let (ours, theirs) = tokio::io::duplex(16);
        let mut ours = Watched::new(ours, LIMIT, Arc::default());
        let ended =
            timeout(Duration::from_secs(20), ours.write_all(&[0; 64])).await.expect("it must not wait for ever");
        assert_eq!(ended.unwrap_err().kind(), io::ErrorKind::TimedOut);
        drop(theirs);
    }

    #[tokio::test]
    async fn a_slow_reader_gets_all_of_it_and_a_patient_write_waits() {
        let (ours, mut theirs) = tokio::io::duplex(1);
        let mut ours = Watched::new(ours, LIMIT, Arc::default());
        let read = async {
            // Longer than the limit as a whole, and never as long at a time.
            for _ in 0..8 {
                sleep(LIMIT / 4).await;
                theirs.read_u8().await.unwrap();
            }
        };
        let (written, ()) = tokio::join!(ours.write_all(&[0; 8]), read);
        written.unwrap();

        let (ours, theirs) = tokio::io::duplex(1);
        let mut ours = Watched::new(ours, LIMIT, Arc::new(AtomicBool::new(true)));
        assert!(timeout(LIMIT * 3, ours.write_all(&[0; 8])).await.is_err(), "it waits");
        drop(theirs);
    }
}
