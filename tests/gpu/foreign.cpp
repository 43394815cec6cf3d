// A device for tests, in the host's memory, that PyTorch takes for another one: tensors of "far" and of the CPU do not mix.
// Every operation runs on the CPU, on copies; one that is given tensors of both is an error, as it is with CUDA.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/native/CPUFallback.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <c10/core/impl/alloc_cpu.h>
#include <torch/library.h>

#include <cstring>

namespace {

constexpr auto kFar = c10::DeviceType::PrivateUse1;
constexpr c10::DispatchKeySet kKeys(c10::DispatchKey::PrivateUse1);

void freed(void* memory) { c10::free_cpu(memory); }

struct Memory final : c10::Allocator {
  at::DataPtr allocate(size_t bytes) override {
    void* memory = c10::alloc_cpu(bytes);
    return {memory, memory, &freed, at::Device(kFar, 0)};
  }
  at::DeleterFnPtr raw_deleter() const override { return &freed; }
  void copy_data(void* into, const void* from, std::size_t bytes) const override { std::memcpy(into, from, bytes); }
};

Memory memory;
REGISTER_ALLOCATOR(kFar, &memory);

struct Hooks : at::PrivateUse1HooksInterface {
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  void init() const override {}
  at::Generator getNewGenerator(c10::DeviceIndex) const override { return at::detail::createCPUGenerator(); }
};

[[maybe_unused]] const int registered = (at::RegisterPrivateUse1HooksInterface(new Hooks()), 1);

// The same memory as a tensor of the CPU.
at::Tensor here(const at::Tensor& tensor) {
  if (tensor.is_cpu()) return tensor.detach();
  auto options = tensor.options().device(at::kCPU).requires_grad(false);
  return at::from_blob(tensor.data_ptr(), tensor.sizes(), tensor.strides(), options);
}

using Type = std::optional<at::ScalarType>;

at::Tensor empty(c10::IntArrayRef size, Type type, std::optional<at::Layout>, std::optional<at::Device>,
                 std::optional<bool>, std::optional<at::MemoryFormat> format) {
  return at::detail::empty_generic(size, &memory, kKeys, c10::dtype_or_default(type), format);
}

at::Tensor empty_strided(c10::IntArrayRef size, c10::IntArrayRef stride, Type type, std::optional<at::Layout>,
                         std::optional<at::Device>, std::optional<bool>) {
  return at::detail::empty_strided_generic(size, stride, &memory, kKeys, c10::dtype_or_default(type));
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& into, bool) {
  at::NoGradGuard guard;
  here(into).copy_(here(from));
  return into;
}

const at::Tensor& grown(const at::Tensor& tensor, c10::IntArrayRef size, std::optional<at::MemoryFormat>) {
  const auto bytes = (c10::multiply_integers(size) + tensor.storage_offset()) * tensor.itemsize();
  auto* storage = tensor.storage().unsafeGetStorageImpl();
  if (static_cast<int64_t>(storage->nbytes()) < bytes) {
    storage->set_data_ptr_noswap(memory.allocate(bytes));
    storage->set_nbytes(bytes);
  }
  tensor.unsafeGetTensorImpl()->set_sizes_contiguous(size);
  return tensor;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& into) {
  if (from.sizes() != into.sizes()) grown(into, from.sizes(), std::nullopt);
  return copy_from(from, into, false);
}

at::Tensor as_strided(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride,
                      std::optional<int64_t> offset) {
  return at::native::as_strided_tensorimpl(self, size, stride, offset);
}

at::Tensor view(const at::Tensor& self, c10::IntArrayRef size) { return at::native::view(self, size); }

at::Tensor reshape_alias(const at::Tensor& self, c10::IntArrayRef size, c10::IntArrayRef stride) {
  return at::native::_reshape_alias(self, size, stride);
}

at::Scalar item(const at::Tensor& self) { return here(self).item(); }

void require_far(const c10::OperatorHandle& operation, const at::Tensor& tensor) {
  if (!tensor.defined() || !tensor.is_cpu() || tensor.dim() == 0) return;
  const auto& name = operation.schema().name();
  const bool indexes = name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
  TORCH_CHECK(indexes, "expected all tensors on far, received one on the CPU in ", name);
}

void on_copies(const c10::OperatorHandle& operation, torch::jit::Stack* stack) {
  for (auto& value : torch::jit::last(stack, operation.schema().arguments().size())) {
    if (value.isTensor()) {
      require_far(operation, value.toTensor());
    } else if (value.isTensorList()) {
      for (const at::Tensor& tensor : value.toTensorVector()) require_far(operation, tensor);
    } else if (value.isOptionalTensorList()) {
      for (const auto& tensor : value.toOptionalTensorVector()) {
        if (tensor) require_far(operation, *tensor);
      }
    }
  }
  at::native::cpu_fallback(operation, stack);
}

}  // namespace

namespace c10::impl {

struct FarGuard final : DeviceGuardImplInterface {
  static constexpr DeviceType static_type = DeviceType::PrivateUse1;
  FarGuard() = default;
  explicit FarGuard(DeviceType) {}
  DeviceType type() const override { return static_type; }
  Device exchangeDevice(Device device) const override { return device; }
  Device getDevice() const override { return Device(static_type, 0); }
  void setDevice(Device) const override {}
  void uncheckedSetDevice(Device) const noexcept override {}
  Stream getStream(Device device) const override { return Stream(Stream::DEFAULT, device); }
  Stream getNewStream(Device device, int) const override { return Stream(Stream::DEFAULT, device); }
  Stream exchangeStream(Stream stream) const override { return stream; }
  DeviceIndex deviceCount() const noexcept override { return 1; }
  void record(void**, const Stream&, const DeviceIndex, const EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const DeviceIndex) const noexcept override {}
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, FarGuard);

}  // namespace c10::impl

TORCH_LIBRARY_IMPL(_, PrivateUse1, library) {
  library.fallback(torch::CppFunction::makeFromBoxedFunction<&on_copies>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, library) {
  library.impl("_copy_from", &copy_from);
  library.impl("_copy_from_and_resize", &copy_from_and_resize);
  library.impl("_local_scalar_dense", &item);
  library.impl("_reshape_alias", &reshape_alias);
  library.impl("as_strided", &as_strided);
  library.impl("empty.memory_format", &empty);
  library.impl("empty_strided", &empty_strided);
  library.impl("resize_", &grown);
  library.impl("view", &view);
}
