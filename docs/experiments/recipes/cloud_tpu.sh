# Once: a slice of 16 chips on four hosts, and the project on each of them.
gcloud compute tpus tpu-vm create large-batch --zone=us-east5-b --accelerator-type=v6e-16 --version=v2-alpha-tpuv6e
gcloud compute tpus tpu-vm ssh large-batch --zone=us-east5-b --worker=all \
  --command="pip install 'batchnorm_jax[experiments]' 'jax[tpu]'"

# The run, with a workdir that all hosts see, such as a mounted bucket.
gcloud compute tpus tpu-vm ssh large-batch --zone=us-east5-b --worker=all \
  --command="batchnorm-train --distributed --dataset=cifar10 --model=resnet18 --batch_size=8192 --optimizer=lars --workdir=/mnt/bucket/large-batch"
