//! One connection of a client.

use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Sleep, sleep};

use crate::app::{App, Phase};
use crate::limits;

/// Size of the buffer for the headers of a request.
const HEADERS: usize = 64 << 10;

/// Serves the requests of a connection until it is closed. When the server is draining, the
/// request in progress is the last.
pub async fn serve(stream: TcpStream, router: Router, app: Arc<App>) {
    // Fails only on a connection that is closed already.
    drop(stream.set_nodelay(true));
    let mut phase = app.phase.subscribe();
    let io = TokioIo::new(WriteLimit::new(stream));
    let service = TowerToHyperService::new(router);
    let mut connection = pin!(
        http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(limits::HEADER_TIME)
            .max_buf_size(HEADERS)
            .serve_connection(io, service)
    );
    let serving = |phase: &Phase| *phase == Phase::Serving;
    if serving(&phase.borrow_and_update()) {
        tokio::select! {
            // A client that closes its connection is no error of the server.
            _ = connection.as_mut() => return,
            _ = phase.wait_for(|phase| !serving(phase)) => {}
        }
    }
    connection.as_mut().graceful_shutdown();
    drop(connection.await);
}

/// A stream whose reader must take something now and then: one that never reads would keep its
/// connection for ever.
struct WriteLimit {
    stream: TcpStream,
    /// Set while the stream takes nothing.
    patience: Option<Pin<Box<Sleep>>>,
}

impl WriteLimit {
    fn new(stream: TcpStream) -> WriteLimit {
        WriteLimit { stream, patience: None }
    }

    /// Passes on the result of a write. A write that waits for too long fails.
    fn limit<T>(
        &mut self,
        written: Poll<io::Result<T>>,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<T>> {
        if written.is_ready() {
            self.patience = None;
            return written;
        }
        let patience = self.patience.get_or_insert_with(|| Box::pin(sleep(limits::WRITE_PAUSE)));
        ready!(patience.as_mut().poll(context));
        Poll::Ready(Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for WriteLimit {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for WriteLimit {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.limit(written, context)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = Pin::new(&mut self.stream).poll_flush(context);
        self.limit(flushed, context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, slices);
        self.limit(written, context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }
}
