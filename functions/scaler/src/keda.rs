//! KEDA's external scaler over gRPC: translates, and nothing else.

use std::net::SocketAddr;
use std::pin::Pin;

use darkroom::shell::bus::Bus;
use darkroom::shell::scaler::{Scaler, Trigger, TriggerError};
use futures_util::{Stream, stream};
use tokio_util::sync::CancellationToken;
use tonic::transport::Server;
use tonic::{Request, Response, Status};

use protocol::external_scaler_server::{ExternalScaler, ExternalScalerServer};
use protocol::{
    GetMetricSpecResponse, GetMetricsRequest, GetMetricsResponse, IsActiveResponse, MetricSpec, MetricValue,
    ScaledObjectRef,
};

#[allow(warnings, clippy::all, clippy::pedantic, clippy::clone_on_ref_ptr, reason = "made by a compiler")]
mod protocol {
    tonic::include_proto!("externalscaler");
}

/// The one metric that there is.
const METRIC: &str = "wanted";

/// Answers until `stop`.
pub(crate) async fn serve(
    bus: Bus,
    scaler: Scaler,
    address: SocketAddr,
    stop: CancellationToken,
) -> Result<(), tonic::transport::Error> {
    let service = ExternalScalerServer::new(Service { bus, scaler, stop: stop.clone() });
    Server::builder().add_service(service).serve_with_shutdown(address, stop.cancelled_owned()).await
}

#[derive(Clone, Debug)]
struct Service {
    bus: Bus,
    scaler: Scaler,
    stop: CancellationToken,
}

impl Service {
    async fn metric(&self, trigger: &Trigger) -> Result<u64, Status> {
        trigger.metric(&self.bus, &self.scaler).await.map_err(|error| match error {
            TriggerError::UnknownModel(_) => Status::not_found(error.to_string()),
            TriggerError::Unanswered { .. } => Status::unavailable(error.to_string()),
        })
    }
}

fn trigger(scaled: &ScaledObjectRef) -> Result<Trigger, Status> {
    let wrong = |why| Status::invalid_argument(format!("the trigger of {}/{}: {why}", scaled.namespace, scaled.name));
    Trigger::read(&scaled.scaler_metadata).map_err(wrong)
}

#[tonic::async_trait]
impl ExternalScaler for Service {
    type StreamIsActiveStream = Pin<Box<dyn Stream<Item = Result<IsActiveResponse, Status>> + Send>>;

    async fn is_active(&self, request: Request<ScaledObjectRef>) -> Result<Response<IsActiveResponse>, Status> {
        let result = self.metric(&trigger(request.get_ref())?).await? > 0;
        Ok(Response::new(IsActiveResponse { result }))
    }

    async fn stream_is_active(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<Self::StreamIsActiveStream>, Status> {
        let trigger = trigger(request.get_ref())?;
        // Once at once, then whenever it is another answer than before.
        let answers = stream::unfold((self.clone(), trigger, None), |(service, trigger, before)| async move {
            loop {
                match service.metric(&trigger).await {
                    Err(status) => return Some((Err(status), (service, trigger, before))),
                    Ok(value) if before != Some(value > 0) => {
                        let result = value > 0;
                        return Some((Ok(IsActiveResponse { result }), (service, trigger, Some(result))));
                    }
                    Ok(_) => {}
                }
                tokio::select! {
                    () = service.stop.cancelled() => return None,
                    () = trigger.may_have_changed(&service.scaler) => {}
                }
            }
        });
        Ok(Response::new(Box::pin(answers)))
    }

    async fn get_metric_spec(
        &self,
        request: Request<ScaledObjectRef>,
    ) -> Result<Response<GetMetricSpecResponse>, Status> {
        let (metric_name, target) = (METRIC.to_owned(), trigger(request.get_ref())?.target());
        let spec = MetricSpec { metric_name, target_size: target.into(), target_size_float: target.into() };
        Ok(Response::new(GetMetricSpecResponse { metric_specs: vec![spec] }))
    }

    async fn get_metrics(&self, request: Request<GetMetricsRequest>) -> Result<Response<GetMetricsResponse>, Status> {
        let scaled = request.get_ref().scaled_object_ref.as_ref();
        let scaled = scaled.ok_or_else(|| Status::invalid_argument("scaledObjectRef is missing"))?;
        let value = self.metric(&trigger(scaled)?).await?;
        let metric_value = i64::try_from(value).unwrap_or(i64::MAX);
        #[expect(clippy::cast_precision_loss, reason = "a number of messages fits")]
        let value = MetricValue { metric_name: METRIC.to_owned(), metric_value, metric_value_float: value as f64 };
        Ok(Response::new(GetMetricsResponse { metric_values: vec![value] }))
    }
}
